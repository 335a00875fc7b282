# One question to a proxy: the bytes of file $3 go to $1:$2, the head of what comes back goes to stdout.
# With the first there is of bash's /dev/tcp, nc, curl, wget (DESIGN §6). Prints "@tool NAME" first; 1 where no answer came in time.
# ask_status is then the answer's first line, where it is one that we have asked for (wget puts a question of its own).
ask() {
  ask_pipe=$3.pipe ask_late=$4/late ask_status=''
  [ ! -e "$ask_late" ] || rm -f "$ask_late" # of a question before this one
  if command -v bash >/dev/null 2>&1; then ask_tool=bash
  elif command -v nc >/dev/null 2>&1; then ask_tool=nc
  elif command -v curl >/dev/null 2>&1; then ask_tool=curl
  elif command -v wget >/dev/null 2>&1; then ask_tool=wget
  else echo '@tool none'; return 1; fi
  echo "@tool $ask_tool"
  if [ "$ask_tool" = bash ] && command -v timeout >/dev/null 2>&1; then
    ask_said=$(timeout 6 bash -c "$ask_bash" ask "$1" "$2" "$3" 2>/dev/null </dev/null 8>&- 9>&-)
    ask_pid=$?
    # Another timeout takes its words otherwise, and has run nothing: then without it.
    case $ask_pid in 12[567]) ;; *)
      [ -z "$ask_said" ] || printf '%s\n' "$ask_said"
      ask_status=${ask_said%%"$ask_nl"*}
      case $ask_pid in 124 | 143) return 1 ;; *) return 0 ;; esac ;;
    esac
  fi
  case $1 in *:*) ask_url=[$1]:$2 ;; *) ask_url=$1:$2 ;; esac
  mkfifo "$ask_pipe" || return 1
  # The question goes in one piece (bash's printf writes line by line): who answers the first line and hangs up is heard.
  # The writer keeps its end open: a proxy may take a half-closed connection for a lost one.
  case $ask_tool in
    bash) bash -c 'exec 5<>"/dev/tcp/$1/$2" || exit 1; cat "$3" >&5; exec cat <&5' ask "$1" "$2" "$3" > "$ask_pipe" 2>/dev/null < /dev/null 8>&- 9>&- & ;;
    nc) { cat "$3"; exec sleep 8; } 2>/dev/null 8>&- 9>&- | nc "$1" "$2" > "$ask_pipe" 2>/dev/null 8>&- 9>&- & ;;
    curl) { cat "$3"; exec sleep 8; } 2>/dev/null 8>&- 9>&- | curl -sN -m 8 "telnet://$ask_url" > "$ask_pipe" 2>/dev/null 8>&- 9>&- & ;;
    # wget writes its own request, and its -S header lines are read instead; it cannot do a CONNECT. Told to, it tries again and again.
    # Credentials reach GNU's by a start-up file, where no argv and no environment shows them; busybox's reads none.
    wget)
      sed -n 's/^Proxy-Authorization:/header = &/p' "$3" | tr -d '\r' > "$ask_pipe.rc"
      WGETRC=$ask_pipe.rc http_proxy="http://$ask_url/" wget -S -T 5 -O /dev/null http://vmproxy.invalid/ > "$ask_pipe" 2>&1 < /dev/null 8>&- 9>&- & ;;
  esac
  ask_pid=$!
  ( sleep 6; : > "$ask_late"; kill "$ask_pid" ) >/dev/null 2>&1 8>&- 9>&- &
  ask_clock=$!
  case $ask_tool in
    wget) sed -n 's/^ *\(HTTP\/[0-9.]* .*\)/\1/p;s/.*server returned error: \(HTTP.*\)/\1/p' < "$ask_pipe" | dd bs=2048 count=1 2>/dev/null ;;
    *)
      ask_lines=0
      while [ "$ask_lines" -lt 40 ] && IFS= read -r ask_line; do
        printf '%s\n' "$ask_line"
        [ "$ask_lines" != 0 ] || ask_status=$ask_line
        ask_lines=$((ask_lines + 1))
        case $ask_line in ''|"$ask_cr") break ;; esac
      done < "$ask_pipe"
      printf '%s\n' "$ask_line" ;;
  esac
  kill "$ask_pid" "$ask_clock" 2>/dev/null
  rm -f "$ask_pipe" "$ask_pipe.rc"
  [ ! -e "$ask_late" ]
}
ask_cr=$(printf '\r')
ask_nl='
'
# The question goes in one piece: bash's own printf writes line by line. Of the answer it reads the head.
ask_bash='exec 5<>"/dev/tcp/$1/$2" || exit 1
cat "$3" >&5
n=0
while [ "$n" -lt 40 ] && IFS= read -r line <&5; do
printf "%s\n" "$line"
n=$((n + 1))
case $line in ""|$'"'\\r'"') exit ;; esac
done
printf "%s" "$line"'

