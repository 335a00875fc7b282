# Which of several addresses take a TCP connection: the nonce, the port, then one address a line up to ".".
IFS= read -r nonce
IFS= read -r port
frame() { printf '\n@%s %s\n' "$nonce" "$*"; }
while IFS= read -r host && [ "$host" != . ]; do
  if command -v bash >/dev/null 2>&1; then
    bash -c 'exec 5<>"/dev/tcp/$1/$2"' reach "$host" "$port" >/dev/null 2>&1 </dev/null &
  elif command -v nc >/dev/null 2>&1; then
    nc -z -w 3 "$host" "$port" >/dev/null 2>&1 </dev/null &
  elif command -v curl >/dev/null 2>&1; then
    # 28 is a time-out behind an open connection; curl says 7 where none could be made (curl(1), EXIT CODES).
    { curl -s --connect-timeout 3 -m 4 "telnet://$host:$port" >/dev/null 2>&1 </dev/null; rc=$?; [ "$rc" = 0 ] || [ "$rc" = 28 ]; } &
  else frame untried; continue; fi
  pid=$!
  ( sleep 4; kill "$pid" ) >/dev/null 2>&1 &
  clock=$!
  if wait "$pid"; then frame "reached $host"; fi
  kill "$clock" 2>/dev/null
done
frame end
