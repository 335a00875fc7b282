# What the helper container runs in the VM's own namespaces: it starts the keeper (keep.sh), which leaves the container,
# and from then on only carries bytes between the container's streams and the keeper's files. The engine may end it at
# any time; the next one goes on where it was, to the byte.
# $1: the command that is wanted; $2: the keeper's text. stdin: "open NONCE 0" or "again NONCE OFFSET", where OFFSET counts
# the bytes of the command's stdout that have arrived; then what the command reads.
# stdout: "ready N", where N counts the bytes that the command has been given; or "bound", "gone", "failed". Then "out N"
# and N bytes of the command's stdout; at its end "err N" with N bytes of its stderr, and "end STATUS".

umask 077
IFS=' ' read -r mode nonce sent || exit 0
case $nonce in ''|*[!0-9a-f]*) exit 64 ;; esac
case $sent in ''|*[!0-9]*) exit 64 ;; esac
run=/run; [ -d "$run" ] && [ -w "$run" ] || run=/var/run
dir=$run/vmproxy-way.$nonce
if sleep 0.01 2>/dev/null; then short=0.02 nap=0.1 moment=0.3; else short=1 nap=1 moment=1; fi
first_line() { [ -r "$1" ] && IFS= read -r REPLY < "$1"; } 2>/dev/null
size() { REPLY=$(wc -c < "$1"); REPLY=$((REPLY)); }

engine() { # REPLY: the running dockerd's process id, empty where it is not to be seen
  for f in /var/run/docker.pid /run/docker.pid; do
    first_line "$f" || continue
    case $REPLY in ''|*[!0-9]*) continue ;; esac
    if [ -d "/proc/$REPLY" ]; then return; fi
  done
  REPLY=''
}

if [ "$mode" = open ]; then
  # What a keeper left that was killed.
  for d in "$run"/vmproxy-way.*; do
    REPLY=''; first_line "$d/keeper" || continue
    case $REPLY in ''|*[!0-9]*) continue ;; esac
    [ -d "/proc/$REPLY" ] || rm -rf "$d"
  done
  # /run belongs to root, and the name cannot be guessed.
  mkdir -m 700 "$dir" && mkfifo "$dir/pipe" || { echo failed; exit 1; }
  : > "$dir/in"; : > "$dir/out"; : > "$dir/err"
  echo "$$" > "$dir/relay"
  if command -v setsid >/dev/null 2>&1; then new=setsid; else new=''; fi
  $new sh -c "$2" vmproxy "$dir" "$1" </dev/null >/dev/null 2>&1 &
  n=0
  while [ ! -e "$dir/state" ] && [ "$n" -lt 500 ]; do sleep "$short"; n=$((n + 1)); done
  REPLY=failed; first_line "$dir/state"
  [ "$REPLY" = ready ] || { echo "$REPLY"; exit 0; }
else
  [ -d "$dir" ] || { echo gone; exit 0; }
  echo "$$" > "$dir/relay.$$" && mv "$dir/relay.$$" "$dir/relay"
  rm -f "$dir/ended"
fi

engine; daemon=$REPLY
size "$dir/in"; echo "ready $REPLY"
exec 7<&0
{
  cat <&7 >> "$dir/in"
  # The end of input is the client's end, unless it is the engine's, which can leave its containers alive (live-restore).
  if [ -d "/proc/$$" ]; then : > "$dir/ended"; fi
  sleep "$moment"; engine
  [ "$REPLY" != "$daemon" ] || : > "$dir/bye"
} &

idle=0
while :; do
  REPLY=''; first_line "$dir/relay" || exit 0
  [ "$REPLY" = "$$" ] || exit 0
  # Asked before the output is read: what the command has said is then all there.
  if [ -e "$dir/status" ]; then over=1; else over=''; fi
  tail -c "+$((sent + 1))" "$dir/out" > "$dir/piece.$$"
  size "$dir/piece.$$"
  if [ "$REPLY" -gt 0 ]; then
    echo "out $REPLY"; cat "$dir/piece.$$"
    sent=$((sent + REPLY)) idle=0
  elif [ -n "$over" ]; then
    tail -c 65536 "$dir/err" > "$dir/piece.$$"
    size "$dir/piece.$$"; echo "err $REPLY"; cat "$dir/piece.$$"
    REPLY=''; first_line "$dir/status"; echo "end $REPLY"
    : > "$dir/told"
    exit 0
  elif [ "$idle" -lt 20 ]; then idle=$((idle + 1)); sleep "$short"
  else sleep "$nap"; fi
done
