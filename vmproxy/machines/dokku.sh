# A Dokku host, asked and told by Dokku's own commands; vmproxy/dokkucalls.py writes what comes on stdin.
# A program is lines: "call W B", then W words one a line and B bytes for its stdin; "export W B", the same, and of what it
# says only the lines of proxy variables are told, so that nobody's other values leave the VM; "write B", then B bytes for
# our record; "forget" and "read", the same record. Bytes are followed by a newline.
# After "ask" comes one program, up to ".": each call is run, and what it says is told.
# After "tell S" (seconds to wait for the lock): "expect N M", a program and what it has to say; "do N" and "undo N", two
# programs for each step; up to ".". Where a step fails, on a signal, and when the client is gone, the undo of that step and
# of those before it are run, the last first: so an undo does no harm where its step did nothing.
IFS= read -r nonce
frame() { printf '\n@%s %s\n' "$nonce" "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
trap : PIPE

place=/var/lib/vmproxy
record=$place/dokku.json
family='^((https?|ftp|all|no)_proxy|pip_(index_url|trusted_host))='
# Dokku takes a forced ssh command from the first of these, and an app's name for every command from the second.
unset SSH_ORIGINAL_COMMAND DOKKU_APP_NAME DOKKU_TRACE
if have timeout; then limit='timeout -k 5 300'; else limit=''; fi
run=/run; [ -d /run ] && [ -w /run ] || run=/var/run
area=$run/vmproxy work='' watcher='' locked='' steps=0 begun=0

bytes() { dd ibs=1 obs=4096 count="$1" 2>/dev/null; IFS= read -r REPLY; }

leave() { # the last frame, then out
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill -9 "$watcher" 2>/dev/null
  [ -z "$work" ] || rm -rf "$work"
  exec 9>&- # who has heard the last word may come again at once, and find nobody
  frame "result $*"
  exit 0
}

write_record() { # from stdin: whole or not at all
  mkdir -p -m 700 "$place" && [ ! -L "$place" ] && [ -O "$place" ] || return 1
  cat > "$record.new" && { sync "$record.new" 2>/dev/null || sync; } && mv -f "$record.new" "$record"
}

program() { # stdin: a program; told "tell", each call is told, else the first that fails ends it
  told=$1 number=0
  while IFS= read -r line; do
    status=0 said=''
    case $line in
      .) return 0 ;;
      'call '*|'export '*)
        set -f; set -- $line; set +f
        kind=$1 left=$2 size=$3; set --
        while [ "$left" -gt 0 ]; do
          IFS= read -r word || return 1
          set -- "$@" "$word"; left=$((left - 1))
        done
        bytes "$size" > "$work/in"
        # The x keeps its last newlines.
        said=$($limit dokku "$@" < "$work/in" 2> "$work/err" 7<&- 9>&-; s=$?; printf x; exit "$s"); status=$?
        said=${said%x}
        [ "$kind" = call ] || said=$(printf %s "$said" | grep -iE "$family") ;;
      'write '*) bytes "${line#write }" > "$work/in"; write_record < "$work/in" 2> "$work/err"; status=$? ;;
      forget) rm -f "$record" 2> "$work/err"; status=$?; rmdir "$place" 2>/dev/null ;;
      read)
        if [ -f "$record" ] && [ ! -L "$record" ]; then said=$(cat "$record" 2> "$work/err"; s=$?; printf x; exit "$s"); status=$?; said=${said%x}
        else status=1 said=''; : > "$work/err"; fi ;;
      *) return 1 ;;
    esac
    if [ "$told" = tell ]; then
      [ "$status" = 0 ] || { frame "complaint $number"; cat "$work/err"; }
      frame "said $number $status"; printf %s "$said"
    elif [ "$told" = compare ]; then printf '%s\n%s' "$status" "$said"
    elif [ "$status" != 0 ]; then return 1; fi
    number=$((number + 1))
  done
}

put_back() { # exit-code text…
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill -9 "$watcher" 2>/dev/null
  watcher=''
  frame 'step put-back'
  bad=''
  while [ "$begun" -gt 0 ]; do
    begun=$((begun - 1))
    # While something of ours is left, the record of it stays.
    IFS= read -r line < "$work/undo.$begun"
    case $bad:$line in :*) ;; *:write*|*:forget) continue ;; esac
    program quiet < "$work/undo.$begun" || program quiet < "$work/undo.$begun" || bad="$bad $begun"
  done
  [ -z "$bad" ] || leave incomplete "$@"
  leave undone "$@"
}

complain() { # the first line that Dokku complained with, for the client to make printable
  frame complaint; sed -e '/^$/d' -e q "$work/err" 2>/dev/null
}

have dokku || leave absent 6
mkdir -m 700 "$area" 2>/dev/null
[ -d "$area" ] && [ ! -L "$area" ] && [ -O "$area" ] || leave refused 6 "$area is not ours"

IFS= read -r line
case $line in
  ask)
    work=$(mktemp -d "$area/ask-XXXXXX") || leave refused 6 "cannot write in $area"
    trap 'leave gone 9' HUP INT TERM
    program tell
    leave told 0 ;;
  'tell '*) ;;
  *) leave gone 9 ;;
esac

# The lock of a change is one for all of vmproxy in this VM.
if have flock; then
  exec 9>>"$area/lock"
  flock -w "${line#tell }" 9 || leave busy 8 "another vmproxy run holds $area/lock"
fi
work=$area/dokku
rm -rf "$work"; mkdir -m 700 "$work" || leave refused 6 "cannot make $work"

complete=''
while IFS= read -r line; do
  set -f; set -- $line; set +f
  case $1 in
    .) complete=1; break ;;
    expect) bytes "$2" > "$work/expect"; bytes "$3" > "$work/expected" ;;
    do) bytes "$2" > "$work/do.$steps" ;;
    undo) bytes "$2" > "$work/undo.$steps"; steps=$((steps + 1)) ;;
    *) break ;;
  esac
done
[ -n "$complete" ] || leave gone 9

if [ -f "$work/expect" ]; then
  program compare < "$work/expect" > "$work/seen"
  cmp -s "$work/seen" "$work/expected" || leave moved 6
fi

# From here on the client's silence is watched: end of input means that nobody is there to be told.
trap 'put_back 9 interrupted' HUP INT TERM
exec 7<&0
{ IFS= read -r line <&7 || kill -TERM $$; } 9>&- &
watcher=$! # ended by KILL: one that is told right after its start, with the traps still being ours, forgets a TERM
while [ "$begun" -lt "$steps" ]; do
  frame "step $begun"
  begun=$((begun + 1))
  program quiet < "$work/do.$((begun - 1))" || { complain; put_back 7 "$begun"; }
done
leave kept 0
