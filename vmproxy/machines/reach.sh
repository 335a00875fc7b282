# Which of several addresses take a TCP connection, all asked at once: the nonce, the port, then one address a line up to ".".
IFS= read -r nonce
IFS= read -r port
frame() { printf '\n@%s %s\n' "$nonce" "$*"; }
reach() {
  if command -v bash >/dev/null 2>&1; then
    bash -c 'exec 5<>"/dev/tcp/$1/$2"' reach "$1" "$port" >/dev/null 2>&1 </dev/null &
  elif command -v nc >/dev/null 2>&1; then
    nc -z -w 3 "$1" "$port" >/dev/null 2>&1 </dev/null &
  elif command -v curl >/dev/null 2>&1; then
    # 28 is a time-out behind an open connection; curl says 7 where none could be made (curl(1), EXIT CODES).
    { curl -s --connect-timeout 3 -m 4 "telnet://$1:$port" >/dev/null 2>&1 </dev/null; rc=$?; [ "$rc" = 0 ] || [ "$rc" = 28 ]; } &
  else frame untried; return; fi
  pid=$!
  ( sleep 4; kill "$pid" ) >/dev/null 2>&1 &
  clock=$!
  if wait "$pid"; then frame "reached $1"; fi
  kill "$clock" 2>/dev/null
}
while IFS= read -r host && [ "$host" != . ]; do reach "$host" & done
wait
frame end
