# The parts of a change: the lock, putting back, small tools, checks. commit.sh tells what happens in which order.
# Comes behind observe.sh and ask.sh.

# A step is told along with the next frame, or when a wait begins: small pieces would each wait for the one before to be
# acknowledged (Nagle, RFC 896).
step() { tell "step $*"; }
speak() { if [ -n "$said" ]; then printf %s "$said"; said=''; fi; }

# ---- the work directory and the lock -------------------------------------------------------------------------------

run=/run; [ -d /run ] && [ -w /run ] || run=/var/run
made=.vmproxy-made # the sign in a directory of ours while it may have to go again
area=$run/vmproxy
work=$area/work

open_area() {
  [ -d "$area" ] || mkdir -m 700 "$area" 2>/dev/null
  # Only root may own it; /run belongs to root, so nobody else can have put it there (T07).
  [ -d "$area" ] && [ ! -L "$area" ] && [ -O "$area" ]
}

take_lock() {
  waited=0 ownerless=0
  while :; do
    if have flock; then
      exec 9>>"$area/lock"
      # Who holds it is written down for whoever only looks, and taken out at the end.
      if flock -n 9; then printf '%s %s\n' "$$" "$boot" > "$area/lock"; return 0; fi
    elif mkdir "$area/held" 2>/dev/null; then
      # Whoever stalls right here is taken for gone below: it is ours where we are the first to write, and it is there still.
      { set -C; printf '%s %s\n' "$$" "$boot" > "$area/held/owner"; set +C; } 2>/dev/null
      REPLY=''; first_line "$area/held/owner"
      [ "$REPLY" != "$$ $boot" ] || return 0
    else
      # Without flock: a holder of another boot, or one that is gone, is no holder any more (F61).
      REPLY=''; first_line "$area/held/owner"; owner=$REPLY
      # One without an owner was cut short before it could write one; a living one takes no time for that.
      measure_nap
      [ -n "$owner" ] || ownerless=$((ownerless + 1))
      if [ "$ownerless" -gt $((2 * naps)) ] || { [ -n "$owner" ] && { [ "${owner#* }" != "$boot" ] || ! kill -0 "${owner% *}" 2>/dev/null; }; }; then
        ownerless=0
        if mv "$area/held" "$area/stale.$$" 2>/dev/null; then
          # Another run may have been quicker, and this is now its lock.
          REPLY=''; first_line "$area/stale.$$/owner"
          if [ "$REPLY" = "$owner" ]; then rm -rf "$area/stale.$$"; step stale-lock; else mv "$area/stale.$$" "$area/held"; fi
        fi
        continue
      fi
    fi
    measure_nap
    [ "$waited" -ge $((lock_timeout * naps)) ] && return 1
    sleep "$nap"; waited=$((waited + 1))
  done
}

clear_beside() { # words…: those, and what stands beside the files under our fixed prefix
  for p in $want_files; do # paths without blanks or patterns (shell.py refuses others)
    for t in "${p%/*}"/.vmproxy-*; do
      # A directory that a run had made, or was about to take away, when it was cut short: its sign stays as long as it does.
      if [ "${t##*/}" = "$made" ]; then if [ -d "$t" ]; then own_dirs="$own_dirs ${p%/*}"; fi; continue; fi
      # Two files may stand in one directory: once each.
      if [ -e "$t" ] || [ -L "$t" ]; then case "$nl$beside" in *"$nl$t$nl"*) ;; *) beside="$beside$t$nl"; set -- "$@" "$t" ;; esac; fi
    done
  done
  [ "$#" = 0 ] || rm -rf "$@"
}

leave() { # status exit-code text…: the last frame, then out
  # From here on nothing may interrupt: all that is left is ours to clear.
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill -9 "$watcher" 2>/dev/null
  # What was begun beside this may still write into the work directory.
  [ -z "$checks" ] || wait $checks 2>/dev/null
  # A proof that was cut short; where Docker does not run there is nothing to ask.
  if [ -n "${proof_image:-}" ] && docker_pid; then proof_clean; fi
  # By name, not by variable: a signal may come between mktemp and the assignment.
  if [ -n "$locked" ]; then
    beside=''
    clear_beside "$work"
    for d in $own_dirs; do rmdir "$d/$made" 2>/dev/null; rmdir "$d" 2>/dev/null && flush "${d%/*}"; done # only where empty
    # The lock goes last: until then its holder is at work. Only the last word comes behind it: who has heard that may
    # come again at once, and find nobody.
    if [ -d "$area/held" ]; then rm -rf "$area/held"; else : > "$area/lock"; fi
    exec 9>&-
  fi
  frame "result $*"
  exit 0
}

# ---- putting back --------------------------------------------------------------------------------------------------

restore() { # file of iptables-restore text, named after its table
  case $variant in nft|legacy) tool=tables-$variant-restore ;; *) tool=tables-restore ;; esac
  case ${1##*/} in
    *6.*) set -- "$1" "${2:-}" "ip6$tool" ;;
    # In the VM itself vmproxy's own Python may do it (machines/legacytables.py): same words, same exit codes.
    *) if [ -n "$python" ]; then set -- "$1" "${2:-}" env PYTHONPATH="$package" "$python" -B -m vmproxy.cli.legacytables
       else set -- "$1" "${2:-}" "ip$tool"; fi ;;
  esac
  text=$1 test=$2; shift 2
  if [ -z "$old_restore" ]; then
    limit $((xwait + 20)) "$@" -w "$xwait" --noflush ${test:+"$test"} < "$text" 2>"$err" && return 0
    rc=$?
    # Before 1.6.2 it knows no -w, and takes the number for a file (F18). Other programs' lock is then taken for it.
    grep -qe "option.*w" -e "Can't open $xwait" "$err" || return "$rc"
    old_restore=1
  fi
  if have flock; then set -- flock /run/xtables.lock "$@"; fi
  limit $((xwait + 20)) "$@" --noflush ${test:+"$test"} < "$text" 2>"$err"
}

undo_singly() { # table: where another tool has taken some of it away already (F22), each line by itself, and then a look
  case $1 in *6) six=6 ;; *) six='' ;; esac
  set -- "$1" "${1%6}"
  while IFS= read -r line; do
    case $line in \**|COMMIT|'') ;; *) printf '*%s\n%s\nCOMMIT\n' "$2" "$line" > "$work/$1.line"; restore "$work/$1.line" ;; esac
  done < "$work/$1.undo"
  cas_dump $six | sed -n "/^\*$2/,/^COMMIT/p" | grep VMPROXY > "$work/$1.line"
  sed -n "/^\*$2/,/^COMMIT/p" "$work/seen$six" | grep VMPROXY | cmp -s - "$work/$1.line"
}

rules_as_seen() {
  as_dumped '' "$text_seen" && { [ ! -e "$work/seen6" ] || as_dumped 6 "$text_seen6"; }
}

as_dumped() { # 6 for IPv6, the text that was seen where it is short
  if [ -n "$2" ]; then # without sed and cmp, where it can be told so
    dump=$(save_rules "$1") now=''
    set -f; IFS=$nl
    for line in $dump; do
      case $line in
        '#'*) continue ;;
        *' ['*']') counters=${line##*" ["}; case ${counters%"]"} in *[!0-9:]*) ;; *) line=${line%" ["*} ;; esac ;;
      esac
      now=$now$line$nl
    done
    unset IFS; set +f
    [ "$now" != "$2" ] || return 0
  fi
  cas_dump "$1" | cmp -s - "$work/seen$1"
}

put_back() { # exit-code text…
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill -9 "$watcher" 2>/dev/null
  watcher=''
  step put-back
  wrote=$did_nat$did_filter$did_nat6$did_filter6$did_reload$did_restart i=0
  while [ "$i" -lt "$files" ]; do eval "wrote=\$wrote\$did_file_$i"; i=$((i + 1)); done
  [ -z "$wrote" ] || tell wrote
  speak
  bad='' err=$work/err
  measure_nap
  # A restart under way is waited for first: two at once could leave two daemons, or none (F26).
  [ -z "$in_flight" ] || restarted
  if [ -n "$did_nat$did_filter$did_nat6$did_filter6" ] && ! rules_as_seen; then
    for t in $tables; do
      eval "done=\$did_$t"
      if [ -n "$done" ]; then restore "$work/$t.undo" || restore "$work/$t.undo" || undo_singly "$t" || bad="$bad iptables-$t"; fi
    done
  fi
  i=$files
  while [ "$i" -gt 0 ]; do
    i=$((i - 1))
    eval "d=\$did_file_$i was=\$was_$i p=\$path_$i s=\$stage_$i"
    if [ -n "$d" ]; then
      if as_written "$i"; then
        if [ "$was" = absent ]; then rm -f "$p" || bad="$bad $p"
        else mv -f "$s/old.$i" "$p" || bad="$bad $p"; fi
        flush "${p%/*}"
      # What somebody else has written there since is theirs, and stays (F39).
      elif ! as_seen "$i"; then bad="$bad $p"; fi
    fi
  done
  [ -z "$did_reload" ] || reload || bad="$bad init"
  code=$1; shift
  if [ -n "$did_restart" ]; then
    # A daemon that did not stop when told may still do so; while the old one runs it has the old environment (F47).
    n=0
    while docker_pid && [ "$REPLY" = "$old_pid" ] && [ "$n" -lt $((30 * naps)) ]; do sleep "$nap"; n=$((n + 1)); done
    if docker_pid && [ "$REPLY" = "$old_pid" ]; then set -- "$*; Docker did not stop and was not restarted"
    else restart || bad="$bad docker"; fi
  fi
  if [ -n "$bad" ]; then leave incomplete "$code" "$*; left:$bad"; fi
  leave undone "$code" "$*"
}

# Its first line that is no remark, nor about a timeout(1) of another form (see limit).
tail_of_error() { sed -e '/^#/d' -e '/^timeout: /d' -e q "$err" 2>/dev/null; }

# ---- small tools ---------------------------------------------------------------------------------------------------

measure_nap() { # a fifth of a second where sleep(1) knows fractions (coreutils, busybox), else a second; `naps` make one
  if [ -n "$naps" ]; then return; fi
  if sleep 0.02 2>/dev/null; then nap=0.2 naps=5; else nap=1 naps=1; fi
}

doze() { # the N-th nap in a row: the first ones are short, since some things are quick
  case $naps:$1 in
    1:*) speak; sleep 1 ;;
    *:[01]) sleep 0.02 ;;
    *:[23]) sleep 0.05 ;;
    *:[45]) sleep 0.1 ;;
    *) speak; sleep "$nap" ;;
  esac
}

flush() { # sync files and directories; old sync(1) knows no operands and flushes everything
  sync "$@" 2>/dev/null || sync
}

blob() { # name length: exactly that many bytes of stdin into a work file, never one more
  dd ibs=1 obs=4096 count="$2" of="$work/$1" 2>/dev/null || leave undone 7 "cannot write to $work"
  IFS= read -r REPLY
}

same() { # path, work file: is the file still what was seen?
  [ -f "$1" ] && [ ! -L "$1" ] && cmp -s "$1" "$2"
}

owned() { # owner file: does it belong to them already, as what we make here does?
  [ "$1" = "$us" ] && [ -O "$2" ] && [ -G "$2" ]
}

as_seen() { # I: does file I stand as it was seen before the change?
  eval "set -- \"\$path_$1\" \"\$was_$1\" $1"
  if [ "$2" = absent ]; then [ ! -e "$1" ] && [ ! -L "$1" ]; else same "$1" "$work/was.$3"; fi
}

as_written() { # I: does file I stand as we have written it?
  eval "set -- \"\$path_$1\" \"\$new_$1\" $1"
  if [ "$2" = write ]; then same "$1" "$work/new.$3"; else [ ! -e "$1" ] && [ ! -L "$1" ]; fi
}

save_rules() { # 6 for IPv6
  case $variant in nft|legacy) tool=tables-$variant-save ;; *) tool=tables-save ;; esac
  "ip${1:-}$tool" 2>/dev/null 9>&-
}

cas_dump() { # without remarks and counters
  save_rules "$@" | sed -e '/^#/d' -e 's/ \[[0-9]*:[0-9]*\]$//'
}

uptime() { # REPLY: seconds since the boot, which no clock can set (F58); 0 where that cannot be read
  REPLY=0; first_line /proc/uptime; REPLY=${REPLY%%.*}
}

docker_up() { # the daemon answers; bounded, also where each question takes its time
  uptime; n=0 gone=0 latest=$((REPLY + 90))
  while [ "$n" -lt $((90 * naps)) ] && [ "$gone" -lt $((15 * naps)) ] && uptime && [ "$REPLY" -le "$latest" ]; do
    if docker_pid; then gone=0; else gone=$((gone + 1)); fi
    if have curl && [ -S /var/run/docker.sock ]; then
      limit 5 curl -sf --unix-socket /var/run/docker.sock http://docker/_ping >/dev/null 2>&1 && return 0
    else limit 10 docker version >/dev/null 2>&1 && return 0; fi
    doze "$n"; n=$((n + 1))
  done
  return 1
}

reload() { # the VM's init reads its files again, and forgets what is there no more
  limit 60 env -i PATH="$PATH" $reload_argv </dev/null >"$err" 2>&1 7<&- || return
  set -f; IFS=$nl; set -- $forget_argv; unset IFS; set +f
  for line do [ -e "${line%% *}" ] || limit 60 env -i PATH="$PATH" ${line#* } </dev/null >/dev/null 2>&1 7<&-; done
  return 0
}

restart() { did_restart=1; begin_restart; restarted; }

begin_restart() {
  # In its own session with a clean environment and none of our descriptors: it must outlive us, and the daemon must not hold our lock.
  [ ! -e "$work/rc" ] || rm -f "$work/rc"
  if have setsid; then new=setsid; else new=''; fi
  in_flight=1
  # One command a line, of plain words; each runs where the one before succeeded.
  set -f; IFS=$nl; set -- $restart_argv; unset IFS; set +f
  # One that could not even be started says so at once, and is not waited for.
  { $new env -i PATH="$PATH" sh -fc 'f=$1; shift; for line; do $line; rc=$?; [ "$rc" = 0 ] || break; done; echo "$rc" > "$f"' restart "$work/rc" "$@" ||
    echo 1 > "$work/rc"; } </dev/null >"$work/restart.log" 2>&1 7<&- 8>&- 9>&- &
}

restarted() {
  measure_nap
  n=0
  while [ ! -s "$work/rc" ]; do
    [ "$n" -ge $((120 * naps)) ] && break
    doze "$n"; n=$((n + 1))
  done
  # Until the daemon answers a restart is under way: one that has no pid file yet would not be seen by the next stop.
  REPLY=1; first_line "$work/rc"
  [ "$REPLY" = 0 ] && docker_up
  came_up=$?
  in_flight=''
  return "$came_up"
}

# ---- checks beside the story: they change nothing, and their time is the proxy's ------------------------------------

test_tables() { # all of them, before the first change, since a restore is atomic per table only (RELIABILITY §0b)
  err=$work/err.tables
  for six in '' 6; do
    both=''
    for t in filter$six nat$six; do
      eval "text=\$text_$t"
      if [ -n "$text" ]; then both=$both$text
      elif [ -s "$work/$t.do" ]; then test_rules "$work/$t.do" || return; fi
    done
    # Nothing is written: so one program may have them together.
    if [ -n "$both" ]; then { printf %s "$both" > "$work/test$six.do" && test_rules "$work/test$six.do"; } || return; fi
  done
}

test_rules() { restore "$1" --test || { rc=$?; echo "$rc" > "$work/untested"; return 1; }; }

parse_files() { # the very bytes that will stand there, by the VM's own shell
  err=$work/err.parse i=0
  while [ "$i" -lt "$files" ]; do
    eval "new=\$new_$i:\$shell_$i was=\$was_$i text=\$text_$i"
    if [ "$new" = write:sh ]; then
      sh -n "$work/new.$i" 2>"$err" || { echo "$i parse" > "$work/parse"; return 1; }
      # The here-document probe of observe.sh (RELIABILITY §0.3): somebody else's may be open, and not ours.
      if [ "$was" != absent ] && { if [ -n "$text" ]; then printf %s "$text"; else cat "$work/new.$i"; fi; printf '\n)\n'; } | sh -n 2>/dev/null; then echo "$i tail" > "$work/parse"; return 1; fi
    fi
    i=$((i + 1))
  done
}

count_containers() {
  limit 10 docker info --format '{{.ContainersRunning}} {{.LiveRestoreEnabled}}' > "$work/counts" 2>/dev/null || echo '? ?' > "$work/counts"
  # One of them is our own way in (transports/docker.py), which outlives a restart.
  if [ -n "${VMPROXY_WAY_IN:-}" ] && IFS=' ' read -r n live < "$work/counts"; then
    case $n in [1-9]*) printf '%s %s\n' "$((n - 1))" "$live" > "$work/counts" ;; esac
  fi
}

sure() { # status-line code…: does it say one of these codes? (RFC 9112 §4)
  case $1 in 'HTTP/1.'[01]' '[0-9][0-9][0-9]|'HTTP/1.'[01]' '[0-9][0-9][0-9][" $ask_cr"]*) ;; *) return 1 ;; esac
  code=${1#HTTP/1.? }; code=${code%"${code#???}"}; shift
  case " $* " in *" $code "*) return 0 ;; esac
  return 1
}
