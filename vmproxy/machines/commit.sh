# The change: lock, compare with what was seen, ask the proxy, rules, files, restart, second look, then wait for the client's last word.
# Comes behind observe.sh and ask.sh. On any failure, on a signal, and when the client is gone, everything is put back.
# stdin, after observe.sh's part: "key value" lines and length-prefixed blobs up to ".", then "go", and at the end "keep" or "undo".

# Caught, not ignored: what is ignored here would be ignored by the Docker that we start, for good.
trap : PIPE
step() { frame "step $*"; }

# ---- the work directory and the lock -------------------------------------------------------------------------------

run=/run; [ -d /run ] && [ -w /run ] || run=/var/run
area=$run/vmproxy
work=$area/work

open_area() {
  mkdir -m 700 "$area" 2>/dev/null
  # Only root may own it; /run belongs to root, so nobody else can have put it there (T07).
  [ -d "$area" ] && [ ! -L "$area" ] && [ -O "$area" ]
}

take_lock() {
  waited=0 ownerless=0
  while :; do
    if have flock; then
      exec 9>>"$area/lock"
      flock -n 9 && return 0
    elif mkdir "$area/held" 2>/dev/null; then
      printf '%s %s\n' "$$" "$boot" > "$area/held/owner"; return 0
    else
      # Without flock: a holder of another boot, or one that is gone, is no holder any more (F61).
      REPLY=''; first_line "$area/held/owner"; owner=$REPLY
      # One without an owner was cut short before it could write one; a living one takes no time for that.
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
    [ "$waited" -ge $((lock_timeout * naps)) ] && return 1
    sleep "$nap"; waited=$((waited + 1))
  done
}

clear_beside() { # what stands beside the files under our fixed prefix; $1 says how to tell of it
  printf '%s' "$want_files" | while IFS= read -r p; do
    for t in "${p%/*}"/.vmproxy-*; do
      if [ -e "$t" ] || [ -L "$t" ]; then rm -rf "$t"; [ -z "$1" ] || $1 "$t"; fi
    done
  done
}

leave() { # status exit-code text…: the last frame, then out
  # From here on nothing may interrupt: all that is left is ours to clear.
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill "$watcher" 2>/dev/null
  # A proof that was cut short; where Docker does not run there is nothing to ask.
  if [ -n "${proof_image:-}" ] && docker_pid; then proof_clean; fi
  # By name, not by variable: a signal may come between mktemp and the assignment.
  if [ -n "$locked" ]; then
    clear_beside
    for d in $own_dirs; do rmdir "$d" 2>/dev/null && flush "${d%/*}"; done # only where empty
    rm -rf "$work" "$area/held"
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
    limit $((xwait + 20)) "$@" -w "$xwait" --noflush ${test:+"$test"} < "$text" 2>"$work/err" 9>&- && return 0
    rc=$?
    # Before 1.6.2 it knows no -w, and takes the number for a file (F18). Other programs' lock is then taken for it.
    grep -qe "option.*w" -e "Can't open $xwait" "$work/err" || return "$rc"
    old_restore=1
  fi
  if have flock; then set -- flock /run/xtables.lock "$@"; fi
  limit $((xwait + 20)) "$@" --noflush ${test:+"$test"} < "$text" 2>"$work/err" 9>&-
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
  cas_dump | cmp -s - "$work/seen" && { [ ! -e "$work/seen6" ] || cas_dump 6 | cmp -s - "$work/seen6"; }
}

put_back() { # exit-code text…
  trap : HUP INT TERM
  [ -z "$watcher" ] || kill "$watcher" 2>/dev/null
  watcher=''
  step put-back
  bad=''
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
        else mv -f "$s/old" "$p" || bad="$bad $p"; fi
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

tail_of_error() { sed -e '/^#/d' -e q "$work/err" 2>/dev/null; } # its first line that is no remark

# ---- small tools ---------------------------------------------------------------------------------------------------

# A fifth of a second where sleep(1) knows fractions (coreutils, busybox), else a second; so many of them make one.
if sleep 0.01 2>/dev/null; then nap=0.2 naps=5; else nap=1 naps=1; fi

flush() { # sync one file or directory; old sync(1) knows no operand and flushes everything
  sync "$1" 2>/dev/null || sync
}

blob() { # name length: exactly that many bytes of stdin into a work file, never one more
  dd ibs=1 obs=4096 count="$2" of="$work/$1" 2>/dev/null || leave undone 7 "cannot write to $work"
  IFS= read -r REPLY
}

same() { # path, work file: is the file still what was seen?
  [ -f "$1" ] && [ ! -L "$1" ] && cmp -s "$1" "$2"
}

as_seen() { # I: does file I stand as it was seen before the change?
  eval "set -- \"\$path_$1\" \"\$was_$1\" $1"
  if [ "$2" = absent ]; then [ ! -e "$1" ] && [ ! -L "$1" ]; else same "$1" "$work/was.$3"; fi
}

as_written() { # I: does file I stand as we have written it?
  eval "set -- \"\$path_$1\" \"\$new_$1\" $1"
  if [ "$2" = write ]; then same "$1" "$work/new.$3"; else [ ! -e "$1" ] && [ ! -L "$1" ]; fi
}

cas_dump() { # 6 for IPv6
  case $variant in nft|legacy) tool=tables-$variant-save ;; *) tool=tables-save ;; esac
  "ip${1:-}$tool" 2>/dev/null 9>&- |
    sed -e '/^#/d' -e 's/ \[[0-9]*:[0-9]*\]$//'
}

uptime() { # REPLY: seconds since the boot, which no clock can set (F58); 0 where that cannot be read
  REPLY=0; first_line /proc/uptime; REPLY=${REPLY%%.*}
}

docker_up() { # the daemon answers; bounded, also where each question takes its time
  uptime; n=0 gone=0 latest=$((REPLY + 90))
  while [ "$n" -lt $((90 * naps)) ] && [ "$gone" -lt $((15 * naps)) ] && uptime && [ "$REPLY" -le "$latest" ]; do
    if docker_pid; then gone=0; else gone=$((gone + 1)); fi
    if have curl && [ -S /var/run/docker.sock ]; then
      limit 5 curl -sf --unix-socket /var/run/docker.sock http://docker/_ping >/dev/null 2>&1 9>&- && return 0
    else limit 10 docker version >/dev/null 2>&1 9>&- && return 0; fi
    sleep "$nap"; n=$((n + 1))
  done
  return 1
}

reload() { # the VM's init reads its files again
  limit 60 env -i PATH="$PATH" $reload_argv </dev/null >"$work/err" 2>&1 7<&- 9>&-
}

restart() { did_restart=1; begin_restart; restarted; }

begin_restart() {
  # In its own session with a clean environment and none of our descriptors: it must outlive us, and the daemon must not hold our lock.
  rm -f "$work/rc"
  if have setsid; then new=setsid; else new=''; fi
  in_flight=1
  # One command a line, of plain words; each runs where the one before succeeded.
  set -f; IFS=$nl; set -- $restart_argv; unset IFS; set +f
  $new env -i PATH="$PATH" sh -fc 'f=$1; shift; for line; do $line; rc=$?; [ "$rc" = 0 ] || break; done; echo "$rc" > "$f"' restart "$work/rc" "$@" \
    </dev/null >"$work/restart.log" 2>&1 7<&- 9>&- &
}

restarted() {
  n=0
  if [ "$naps" != 1 ]; then for t in 1 2 3 4 5; do [ -s "$work/rc" ] || sleep 0.03; done; fi # some are quick
  while [ ! -s "$work/rc" ]; do
    [ "$n" -ge $((120 * naps)) ] && break
    sleep "$nap"; n=$((n + 1))
  done
  # Until the daemon answers a restart is under way: one that has no pid file yet would not be seen by the next stop.
  REPLY=1; first_line "$work/rc"
  [ "$REPLY" = 0 ] && docker_up
  came_up=$?
  in_flight=''
  return "$came_up"
}

# ---- the story -----------------------------------------------------------------------------------------------------

# In the order of writing; those that end in 6 are ip6tables'.
tables='filter nat filter6 nat6'
boot='' files=0 variant='' xwait=5 lock_timeout=0 restart_argv='' policy=never python='' package='' seen_pid='' ask_at='' locked='' watcher='' did_restart='' reload_argv='' did_reload='' own_dirs='' in_flight='' old_pid='' log='' did_nat='' did_filter='' did_nat6='' did_filter6='' old_restore='' proof_args=''
REPLY=''; first_line /proc/sys/kernel/random/boot_id; boot=$REPLY
open_area || { frame "result refused 6 $area is not ours"; exit 0; }

# The first line says how long to wait for the lock; blobs are only read once it is held.
IFS= read -r line; lock_timeout=${line#lock }
if take_lock; then locked=1; else frame "result busy 8 another vmproxy run holds $area/lock"; exit 0; fi
[ ! -e "$work" ] || step "cleared $work"
rm -rf "$work"; mkdir -m 700 "$work" || leave refused 6 "cannot make $work"

complete=''
while IFS= read -r line; do
  case $line in
    .) complete=1; break ;;
    'blob '*) set -f; set -- $line; set +f; blob "$2" "$3" || break ;;
    'file '*) # file I MODE OWNER WAS NEW SHELL PATH
      set -f; set -- $line; set +f
      i=$2 files=$((i + 1))
      eval "mode_$i=\$3 owner_$i=\$4 was_$i=\$5 new_$i=\$6 shell_$i=\$7 stage_$i='' did_file_$i='' own_$i=''"
      p=${line#file * * * * * * }; eval "path_$i=\$p" ;;
    'directory '*) eval "own_${line#directory }=1" ;;
    'reload '*) reload_argv=${line#reload } ;;
    'variant '*) variant=${line#variant } ;;
    'xwait '*) xwait=${line#xwait } ;;
    'daemon '*) seen_pid=${line#daemon } ;;
    'restart '*) policy=${line#restart } ;;
    'argv '*) restart_argv="$restart_argv${line#argv }$nl" ;;
    'python '*) python=${line#python } ;;
    'package '*) package=${line#package } ;;
    'log '*) log=${line#log } ;;
    'ask '*) ask_at=${line#ask } ;;
    'prove '*) proof_args=${line#prove } ;;
  esac
done
[ -n "$complete" ] || leave gone 9 'the client went away before the change began'

# Left over from a run that was killed or lost its power: one fixed prefix, beside the files and in the work area (RELIABILITY A6).
clear_beside 'step cleared'

step compare
i=0
while [ "$i" -lt "$files" ]; do
  eval "p=\$path_$i was=\$was_$i"
  if [ "$was" = absent ]; then if [ -e "$p" ] || [ -L "$p" ]; then leave moved 6 "$p appeared meanwhile"; fi
  else same "$p" "$work/was.$i" || leave moved 6 "$p was changed meanwhile"; fi
  i=$((i + 1))
done
# Its environment was looked at too: another run may have restarted it since (F60).
if [ -n "$seen_pid" ]; then
  docker_pid || REPLY=0
  [ "$REPLY" = "$seen_pid" ] || leave moved 6 'Docker was started, stopped or restarted meanwhile'
fi
if [ -n "$variant" ]; then rules_as_seen || leave moved 6 'the firewall rules changed meanwhile'; fi

if [ -n "$ask_at" ]; then
  step ask
  set -f; set -- $ask_at; set +f
  for q in connect get; do frame "leg vm $q"; ask "$1" "$2" "$work/$q" "$work" || break; done
  frame asked
  # The client judges the answer: one table of status codes, in one place.
  IFS= read -r line || leave gone 9 'the client went away before the change began'
  [ "$line" = go ] || leave refused 6 'the client said no'
fi

# From here on the client's silence is watched: end of input means that nobody is there to be told (DESIGN §6).
trap 'put_back 9 interrupted' HUP INT TERM
exec 7<&0
{ IFS= read -r line <&7 || kill -TERM $$; } 9>&- &
watcher=$!

step stage
i=0
while [ "$i" -lt "$files" ]; do
  eval "p=\$path_$i was=\$was_$i new=\$new_$i mode=\$mode_$i owner=\$owner_$i shell=\$shell_$i own=\$own_$i"
  if [ -n "$own" ]; then # the directory is ours: here from now on, and gone in the end where it is empty
    d=${p%/*}
    if [ ! -d "$d" ]; then
      mkdir -m 755 "$d" 2>"$work/err" || put_back 7 "cannot make $d: $(tail_of_error)"
      flush "${d%/*}"; own_dirs="$own_dirs $d"
    elif [ "$new" = delete ]; then own_dirs="$own_dirs $d"; fi
  fi
  s=$(mktemp -d "${p%/*}/.vmproxy-XXXXXX") || put_back 7 "cannot write beside $p"
  eval "stage_$i=\$s"
  if [ "$new" = write ]; then
    { dd if="$work/new.$i" of="$s/new" bs=65536 2>"$work/err" && cmp -s "$work/new.$i" "$s/new"; } || put_back 7 "cannot write beside $p: $(tail_of_error)"
    if [ "$shell" = sh ]; then
      sh -n "$s/new" 2>"$work/err" || put_back 6 "$p would not parse any more: $(tail_of_error)"
      # The here-document probe of observe.sh, on the very bytes that will stand there (RELIABILITY §0.3).
      if { cat "$s/new"; printf '\n)\n'; } | sh -n 2>/dev/null; then put_back 6 "the end of $p would not be read"; fi
    fi
    # A share (vfat, vboxsf, 9p) may know no owners and modes. Then the content is all there is, unless it must not be read (F40).
    if ! { chown "$owner" "$s/new" && chmod "$mode" "$s/new"; } 2>"$work/err"; then
      case $(cat "$work/err") in
        *'not permitted'*|*'not supported'*|*'nvalid argument'*) ;;
        *) put_back 7 "cannot give $p its owner and mode: $(tail_of_error)" ;;
      esac
      case $mode:$(ls -ld "$s/new") in
        *00:????------*) ;;
        *00:*) put_back 6 "the disk cannot keep $p from being read by others" ;;
      esac
      step "without-owner $p"
    fi
    flush "$s/new"
  fi
  # A copy beside the file: putting back is then one rename, and needs no room on the disk. (A hard link would look like
  # somebody's own to the next run, were this one killed.)
  if [ "$was" != absent ]; then
    # Only the bytes are asked of cp: on a share without owners it cannot give the copy the file's.
    cp -p "$p" "$s/old" 2>"$work/err"
    if ! cmp -s "$work/was.$i" "$s/old"; then
      same "$p" "$work/was.$i" || put_back 6 "$p was changed meanwhile"
      put_back 7 "cannot keep the old $p: $(tail_of_error)"
    fi
    flush "$s/old"
  fi
  i=$((i + 1))
done

if [ -n "$variant" ]; then
  step rules
  # Both tables are tested first, since a restore is atomic per table only (RELIABILITY §0b).
  for t in $tables; do
    if [ -s "$work/$t.do" ]; then
      restore "$work/$t.do" --test; rc=$?
      case $rc in
        0) ;;
        4|124|143) put_back 8 'the xtables lock is held by another program' ;;
        *) put_back 6 "iptables-restore --test refuses table $t: $(tail_of_error)" ;;
      esac
    fi
  done
  for t in $tables; do
    if [ -s "$work/$t.do" ]; then
      step "rules $t"
      eval "did_$t=1"
      restore "$work/$t.do"; rc=$?
      case $rc in
        0) ;;
        # Nothing of this table was written: exit 4 is the lock, any other failure of a single COMMIT leaves the table as it was.
        4|124|143) eval "did_$t=''"; put_back 8 'the xtables lock is held by another program' ;;
        *) eval "did_$t=''"; put_back 7 "iptables-restore fails for table $t: $(tail_of_error)" ;;
      esac
    fi
  done
fi

i=0
while [ "$i" -lt "$files" ]; do
  eval "p=\$path_$i was=\$was_$i new=\$new_$i s=\$stage_$i"
  step "file $p"
  # Once more, at the last moment: what is replaced is what was seen (F39), and it is a plain file (F38).
  if [ "$was" = absent ]; then if [ -e "$p" ] || [ -L "$p" ]; then put_back 6 "$p appeared meanwhile"; fi
  else same "$p" "$work/was.$i" || put_back 6 "$p was changed meanwhile"; fi
  eval "did_file_$i=1"
  if [ "$new" = write ]; then
    mv -f "$s/new" "$p" 2>"$work/err" || { eval "did_file_$i=''"; put_back 7 "cannot replace $p: $(tail_of_error)"; }
  else
    rm -f "$p" 2>"$work/err" || { eval "did_file_$i=''"; put_back 7 "cannot remove $p: $(tail_of_error)"; }
  fi
  flush "${p%/*}"
  i=$((i + 1))
done

if [ -n "$reload_argv" ] && [ "$files" -gt 0 ]; then
  step reload
  reload || put_back 7 "$reload_argv fails: $(tail_of_error)"
  did_reload=1
fi

outcome=none
if [ "$policy" != no ]; then
  step restart-check
  REPLY=''
  # A daemon that does not run stays stopped (F48); one that hangs counts as busy (F51).
  if ! docker_pid; then outcome=stopped
  else
    old_pid=$REPLY
    counts=$(limit 10 docker info --format '{{.ContainersRunning}} {{.LiveRestoreEnabled}}' 2>/dev/null 9>&-) || counts='? ?'
    case $policy:$counts in
      always:*|auto:'0 '*|auto:*' true') outcome=yes ;;
      auto:'? ?') outcome='pending ?' ;;
      auto:*) outcome="pending ${counts%% *}" ;;
      *) outcome="pending ${counts%% *}" ;;
    esac
  fi
  frame "restart $outcome"
fi
if [ "$outcome" = yes ]; then
  step restart
  if ! restart; then
    frame log; cat "$work/restart.log"; [ -z "$log" ] || tail -n 20 "$log" 2>/dev/null
    put_back 7 'Docker does not come back'
  fi
fi

step look
look
if [ -n "$proof_args" ]; then
  step prove
  set -f; set -- $proof_args; set +f
  prove "$@"
fi

# The watcher has read nothing: the client speaks only after it has seen "ready".
kill "$watcher" 2>/dev/null; wait "$watcher" 2>/dev/null
watcher=''
frame ready
IFS= read -r line || put_back 9 'the client went away'
[ "$line" = keep ] || put_back 7 'put back as told'
leave kept 0
