# The far end of a serial line: carries commands and their three streams for the client, one request at a time.
# Comes behind lines that set: o (the terminal's settings before), D (what our answers begin with), U (what requests
# begin with), T (seconds of silence after which the client is gone), N (the same of noise). Needs what the first loop
# below names.
#
# A request is one line, "U TAG VERB …", some with lines of base64 behind it; an answer is one line, "@D TAG …". The
# client repeats what was not answered, so every request may come twice. Nothing is said that was not asked for.

say() { printf '\n@%s %s\n' "$D" "$1"; }

lack=''
for c in stty base64 sha256sum dd mkfifo mkdir mv rm; do command -v "$c" >/dev/null 2>&1 || lack="$lack${lack:+,} $c"; done
if [ -n "$lack" ]; then say "0 lack$lack ."; stty $o; exit; fi
setsid=''; if command -v setsid >/dev/null 2>&1; then setsid=setsid; fi
# Not even by a ^C of a client that gives up just now do we end before we can remove what we make.
trap '' INT HUP TERM
mask=$(umask); umask 077
for w in /run /dev/shm /tmp none; do w=$w/.vmproxy-line-$D; mkdir "$w" 2>/dev/null && break; done
if [ ! -d "$w" ]; then say '0 lack directory to write in .'; stty $o; exit; fi

set -f
jobs='' clear=$(printf '\025')
# A serial line has no end of file: silence is the end. busybox and bash wait for input before they read, and have
# "read -t"; dash has not, and ends its read when the terminal gives nothing for VTIME (termios(3)).
wait=''; if echo | read -t 9 l 2>/dev/null; then wait="-t $T"; fi
stty raw -echo min 0 time "${T}0"
# A ^C is a byte from here on. The others are caught, so that they end the read below and not us.
trap - INT; trap : HUP TERM

hear() { IFS= read -r $wait l; }
# The digest of a text and a newline, in REPLY. A here-document costs one process; a pipe, three.
sum() {
  REPLY=$(sha256sum <<E
$1
E
  )
  REPLY=${REPLY%% *}
}
# A file that is there is whole: others look for it.
put() { printf '%s\n' "$2" >"$1.new" && mv -f "$1.new" "$1"; }
# A word into a fifo, without waiting for its reader.
tell() { printf '%s\n' "$2" 1<>"$1"; }

# The command's stdin: pieces as they are told of.
feed() {
  while IFS= read -r k && [ "$k" != end ]; do
    base64 -d <"$1/in.$k" || { : >"$1/deaf"; break; }
    rm -f "$1/in.$k"
  done <&5 >"$1/in"
  : >"$1/over.in"
}

# One stream of the command, $3, in pieces of which four may be under way. An empty one is the end.
pump() {
  n=0
  while n=$((n + 1)); do
    b=''; for x in $(dd bs=3000 count=1 2>/dev/null <&4 | base64); do b=$b$x; done
    sum "$2 $3 $n $b"
    put "$1/$3.$n" "$3 $n $REPLY $b"
    [ -n "$b" ] || break
    if [ "$n" -ge 4 ]; then IFS= read -r k <&5 && rm -f "$1/$3.$k"; fi
  done 4<"$1/$3"
  : >"$1/over.$3"
}

# The command itself. Its status is a file when it has ended.
run() {
  umask "$mask"
  { : >"$1/begun"; $setsid sh -c "$cmd"; } <"$1/in" >"$1/out" 2>"$1/err"
  s=$?
  umask 077
  sum "$2 status $s"
  put "$1/status" "status $s $REPLY"
}

start() {
  cmd=$(base64 -d <"$w/$1.command"; echo .); cmd=${cmd%.}
  d=$w/$1
  mkdir "$d" && mkfifo "$d/in" "$d/out" "$d/err" "$d/tell.in" "$d/tell.out" "$d/tell.err" || return 1
  # Each has its fifo for words from us open from its first moment on: a word that nobody holds is lost.
  exec 5<>"$d/tell.in"
  feed "$d" </dev/null >/dev/null 2>&1 &
  pids=$!
  exec 5<>"$d/tell.out"
  pump "$d" "$1" out </dev/null >/dev/null 2>&1 &
  pids="$pids $!"
  exec 5<>"$d/tell.err"
  pump "$d" "$1" err </dev/null >/dev/null 2>&1 &
  pids="$pids $!"
  exec 5>&-
  # With job control, or what runs in the background would ignore ^C for good, and Docker with it.
  set -m 2>/dev/null
  run "$d" "$1" </dev/null >/dev/null 2>&1 &
  eval "feeder_$1=\${pids%% *} pumps_$1=\${pids#* } job_$1=\$!"
  set +m 2>/dev/null
  eval "out_$1=1 err_$1=1 in_$1=0"
  jobs="$jobs $1"
}

# Let go of a command: the end of its input, and nobody listens. One that has not begun never will.
drop() {
  eval "set -- $1 \$feeder_$1 \$pumps_$1 \$job_$1"
  # What has ended by itself is not killed: its number may be somebody else's by now.
  [ -e "$w/$1/over.in" ] || kill "$2"
  [ -e "$w/$1/over.out" ] || kill "$3"
  [ -e "$w/$1/over.err" ] || kill "$4"
  [ -e "$w/$1/begun" ] || kill "$5"
  rm -rf "$w/$1" "$w/$1.command"
}

# The client has piece $3 - 1 of stream $2.
had() {
  eval "k=\$${2}_$1"
  while [ "$k" -lt "$3" ]; do tell "$w/$1/tell.$2" "$k"; k=$((k + 1)); done
  eval "${2}_$1=\$k"
}

# A request with lines behind it: ID NUMBER LINES DIGEST. Its text is in b.
body() {
  b='' i=$3
  while [ "$i" -gt 0 ] && hear; do b=$b$l i=$((i - 1)); done
  sum "$1 $2 $b"
  [ "$REPLY" = "$4" ]
}

answer() {
  tag=$1 verb=$2; shift 2
  if [ "$verb" = alive ]; then say "$tag yes ."; return; fi
  id=$1
  case $id in ''|*[!0-9a-f]*) return ;; esac
  case $verb in
    command) # a piece of a command to come
      if ! body "$@"; then say "$tag bad ."; return; fi
      eval "k=\${text_$id:-0}"
      if [ "$2" -gt "$k" ]; then printf '%s\n' "$b" >>"$w/$id.command"; eval "text_$id=\$2"; fi
      say "$tag yes ." ;;
    start)
      if [ -d "$w/$id" ] || start "$id" 2>/dev/null; then say "$tag yes ."; else say "$tag no ."; fi ;;
    data)
      if ! body "$@"; then say "$tag bad ."; return; fi
      d=$w/$id
      eval "k=\${in_$id:-}"
      if [ ! -d "$d" ] || [ -e "$d/deaf" ] || [ -e "$d/status" ]; then say "$tag no ."
      elif [ "$2" -le "$k" ]; then say "$tag yes ."
      elif [ "$2" -ne "$((k + 1))" ]; then say "$tag no ."
      elif [ -e "$d/in.$((k - 3))" ]; then say "$tag full ."
      else printf '%s\n' "$b" >"$d/in.$2"; eval "in_$id=\$2"; tell "$d/tell.in" "$2"; say "$tag yes ."; fi ;;
    end) if [ -d "$w/$id" ]; then tell "$w/$id/tell.in" end; fi; say "$tag yes ." ;;
    poll) # ID, and the numbers of the pieces of stdout and stderr that are wanted
      d=$w/$id
      if [ ! -d "$d" ]; then say "$tag no ."; return; fi
      case $2$3 in *[!0-9]*) return ;; esac
      had "$id" out "$2"; had "$id" err "$3"
      for f in "out.$2" "err.$3" status; do
        if [ -e "$d/$f" ] && IFS= read -r l <"$d/$f"; then say "$tag $l ."; return; fi
      done
      say "$tag none ." ;;
    drop) if [ -d "$w/$id" ]; then drop "$id"; fi; say "$tag yes ." ;;
  esac
}

# Noise that goes on is silence, too. Where /proc is not, that is not known.
noise() {
  { read -r t l </proc/uptime; } 2>/dev/null || return 1
  t=${t%%.*} since=${since:-$t}
  [ "$((t - since))" -gt "$N" ]
}

say '0 ready .'
since=''
while hear; do
  case $l in
    # Somebody new is on the line, and begins as one does on a line of which one knows nothing.
    *"$clear"*) break ;;
    "$U "*" bye .") break ;;
    "$U "*" .") set -- $l; shift; since=''; answer "$@" 2>/dev/null ;;
    ?*) if noise; then break; fi ;;
  esac
done
# Of a line that goes, the kernel tells us, then the shell we were typed at, then the kernel again: none may end rm.
trap '' HUP TERM
for j in $jobs; do if [ -d "$w/$j" ]; then drop "$j" 2>/dev/null; fi; done
rm -rf "$w"
trap : HUP TERM
stty $o
say '0 bye .'
