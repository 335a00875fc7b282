# The keeper: runs the command in the VM, out of the container that it came by. A restart of the engine ends the container,
# and must not end what that restart is a part of.
# $1: its directory; $2: the command. In there: in (what the client has sent), pipe (the command's stdin), out, err, state,
# relay (who carries the bytes), ended (its input has), bye (the client has gone), status (how the command ended), told (the
# client knows).

umask 077
dir=$1
nl='
'
first_line() { [ -r "$1" ] && IFS= read -r REPLY < "$1"; } 2>/dev/null
control_groups() { while IFS= read -r line; do printf '%s\n' "$line"; done < /proc/self/cgroup; } 2>/dev/null

join() { # hierarchy path: its root, where any process may be; else where the VM's first process is
  [ -d "$1" ] || return 0
  echo "$$" > "$1/cgroup.procs" || echo "$$" > "$1$2/cgroup.procs"
} 2>/dev/null

# What ends a container kills everything in its control groups (cgroups(7)).
was=$(control_groups)
while IFS=: read -r number controllers path; do
  case $number in
    0) if [ -e /sys/fs/cgroup/cgroup.procs ]; then join /sys/fs/cgroup "$path"; else join /sys/fs/cgroup/unified "$path"; fi ;;
    *) join "/sys/fs/cgroup/${controllers#name=}" "$path" ;;
  esac
done < /proc/1/cgroup
state=ready
set -f; IFS=$nl
for line in $(control_groups); do
  case $line in *:/) continue ;; esac
  case "$nl$was$nl" in *"$nl$line$nl"*) state=bound ;; esac
done
unset IFS; set +f
echo "$$" > "$dir/keeper"

if [ "$state" = ready ]; then
  # Both ends at once, since opening one would wait for the other; then each for who needs it.
  exec 5<>"$dir/pipe" && exec 6>"$dir/pipe" 7<"$dir/pipe" && exec 5>&-
  {
    sh -c "$2" <&7 >>"$dir/out" 2>>"$dir/err" 7<&-
    echo "$?" > "$dir/status.new"; mv "$dir/status.new" "$dir/status"
  } 6>&- &
  exec 7<&-
fi
echo "$state" > "$dir/state.new"; mv "$dir/state.new" "$dir/state"

uptime() { REPLY=0; first_line /proc/uptime; REPLY=${REPLY%%.*}; }
here() { REPLY=''; first_line "$dir/relay" && [ -d "/proc/${REPLY:-none}" ]; }
if sleep 0.01 2>/dev/null; then short=0.02 nap=0.1; else short=1 nap=1; fi
# For an engine that first stops other containers, and starts anew, and for the client to ask again; and where all is
# over, for the client to hear of it.
patience=180 farewell=15
fed=0 idle=0 open=1 left='' alone=''
while [ -d "$dir" ] && [ "$state" = ready ]; do
  if [ -e "$dir/status" ]; then over=1; else over=''; fi
  if here; then left=''; elif [ -z "$left" ]; then uptime; left=$REPLY; fi
  gone=''
  if [ -e "$dir/bye" ]; then gone=1
  elif [ -n "$left" ]; then
    # First its input ended and then itself: it was not the engine's restart that began it.
    uptime; if [ -e "$dir/ended" ] || [ "$REPLY" -ge $((left + patience)) ]; then gone=1; fi
  fi
  if [ -n "$over" ]; then
    # Also who has said goodbye waits to hear what was put back, and Docker may be restarted for that.
    if [ -e "$dir/told" ]; then break; fi
    if [ -z "$left" ]; then alone=''; else
      uptime; alone=${alone:-$REPLY}; [ "$REPLY" -lt $((alone + farewell)) ] || break
    fi
  elif [ -n "$open" ]; then
    tail -c "+$((fed + 1))" "$dir/in" > "$dir/fed"
    size=$(wc -c < "$dir/fed")
    if [ "$size" -gt 0 ]; then cat "$dir/fed" >&6; fed=$((fed + size)) idle=0
    elif [ -n "$gone" ]; then exec 6>&-; open=''; fi
  fi
  if [ "$idle" -lt 20 ]; then idle=$((idle + 1)); sleep "$short"; else sleep "$nap"; fi
done
[ "$state" = ready ] || sleep 5
rm -rf "$dir"
