# The change: lock, compare with what was seen, ask the proxy, rules, files, restart, second look, then wait for the client's last word.
# Comes behind observe.sh, ask.sh and change.sh. On any failure, on a signal, and when the client is gone, everything is put back.
# stdin, after observe.sh's part: "key value" lines and length-prefixed contents up to ".", then "go" where it is asked for, and at the end "keep" or "undo".

# Caught, not ignored: what is ignored here would be ignored by the Docker that we start, for good.
trap : PIPE

# In the order of writing; those that end in 6 are ip6tables'.
tables='filter nat filter6 nat6'
boot='' files=0 variant='' xwait=5 lock_timeout=0 restart_argv='' policy=never python='' package='' seen_pid='' ask_at='' locked='' watcher='' did_restart='' reload_argv='' forget_argv='' did_reload='' own_dirs='' in_flight='' old_pid='' log='' did_nat='' did_filter='' did_nat6='' did_filter6='' old_restore='' proof_args='' beside='' checks='' testing='' parsing='' counting='' naps='' nap=1 us='' text_seen='' text_seen6='' text_filter='' text_nat='' text_filter6='' text_nat6=''
while IFS='	 ' read -r key _ value _; do # as in look_system
  case $key in Uid:) us=$value ;; Gid:) us=$us:$value; break ;; esac
done </proc/self/status 2>/dev/null
err=$work/err
hear
REPLY=''; first_line /proc/sys/kernel/random/boot_id; boot=$REPLY
open_area || { frame "result refused 6 $area is not ours"; exit 0; }

# The first line says how long to wait for the lock; blobs are only read once it is held.
IFS= read -r line; lock_timeout=${line#lock }
if take_lock; then locked=1; else frame "result busy 8 another vmproxy run holds $area/lock"; exit 0; fi
if [ -e "$work" ] || [ -L "$work" ]; then step "cleared $work"; rm -rf "$work"; fi
mkdir -m 700 "$work" || leave refused 6 "cannot make $work"

complete=''
while IFS= read -r line; do
  case $line in
    .) complete=1; break ;;
    'blob '*) set -f; set -- $line; set +f; blob "$2" "$3" || break ;;
    'lines '*)
      set -f; set -- $line; set +f
      lines "$2" "$3" || leave undone 7 "cannot write to $work"
      # Kept at hand, so that no program is needed to read or to compare it.
      case $2 in
        seen*) eval "text_$2=\$text" ;;
        new.*) eval "text_${2#new.}=\$text" ;;
        *.do) eval "text_${2%.do}=\$text" ;;
      esac ;;
    'file '*) # file I MODE OWNER WAS NEW SHELL PATH
      set -f; set -- $line; set +f
      i=$2 files=$((i + 1))
      eval "mode_$i=\$3 owner_$i=\$4 was_$i=\$5 new_$i=\$6 shell_$i=\$7 text_$i='' stage_$i='' did_file_$i='' own_$i=''"
      p=${line#file * * * * * * }; eval "path_$i=\$p" ;;
    'directory '*) eval "own_${line#directory }=1" ;;
    'reload '*) reload_argv=${line#reload } ;;
    'gone '*) forget_argv="$forget_argv${line#gone }$nl" ;;
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
clear_beside
set -f; IFS=$nl
for t in $beside; do step "cleared $t"; done
unset IFS; set +f

# Two checks run beside what follows; they are waited for before the first file is staged, and before the first rule.
if [ -n "$variant" ]; then test_tables 8>&- 9>&- & testing=$! checks="$checks $!"; fi
parse_files 8>&- 9>&- & parsing=$! checks="$checks $!"

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
  host=$1 port=$2; shift 2
  rc=0
  ask "$host" "$port" "$work/connect" "$work" > "$work/answer" || rc=$?
  # The codes that settle it come with the question. Of anything else the client judges, by two answers.
  if [ "$rc" = 0 ] && sure "$ask_status" "$@"; then tell "leg vm connect$nl@tool $ask_tool$nl$ask_status"; tell 'asked sure'
  else
    frame 'leg vm connect'; cat "$work/answer"
    # Who is silent once is not asked again: it would only be waited for twice.
    if [ "$rc" = 0 ]; then frame 'leg vm get'; ask "$host" "$port" "$work/get" "$work"; fi
    frame asked
    IFS= read -r line || leave gone 9 'the client went away before the change began'
    [ "$line" = go ] || leave refused 6 'the client said no'
  fi
fi

# From here on the client's silence is watched: end of input means that nobody is there to be told (DESIGN §6).
# A signal may come while a function's output goes elsewhere (docker_up): what is said then still goes to the client. What
# runs in the background has no 8, or it would hold the connection; a function keeps it, for the trap in it.
exec 8>&1
trap 'exec >&8; put_back 9 interrupted' HUP INT TERM
exec 7<&0
{ IFS= read -r line <&7 || kill -TERM $$; } 8>&- 9>&- &
watcher=$!

step stage; speak
if ! wait "$parsing"; then
  REPLY='0 parse'; first_line "$work/parse"; err=$work/err.parse
  eval "p=\$path_${REPLY% *}"
  if [ "${REPLY#* }" = tail ]; then put_back 6 "the end of $p would not be read"; fi
  put_back 6 "$p would not parse any more: $(tail_of_error)"
fi
i=0 s='' stage_in='' staged=''
while [ "$i" -lt "$files" ]; do
  eval "p=\$path_$i was=\$was_$i new=\$new_$i mode=\$mode_$i owner=\$owner_$i own=\$own_$i text=\$text_$i"
  if [ -n "$own" ]; then # the directory is ours: here from now on, and gone in the end where it is empty
    d=${p%/*}
    if [ ! -d "$d" ]; then
      # It comes with a sign in it that it is ours, by one rename: also after a kill the next run knows whose it is.
      { s=$(mktemp -d "${d%/*}/.vmproxy-XXXXXX") && mkdir "$s/$made" && chmod 755 "$s" && mv "$s" "$d"; } 2>"$err" ||
        put_back 7 "cannot make $d: $(tail_of_error)"
      flush "${d%/*}"
    elif [ "$new" = delete ]; then mkdir "$d/$made" 2>/dev/null; fi
    own_dirs="$own_dirs $d"
  fi
  if [ "${p%/*}" != "$stage_in" ]; then
    s=$(mktemp -d "${p%/*}/.vmproxy-XXXXXX") || put_back 7 "cannot write beside $p"
    stage_in=${p%/*}
  fi
  eval "stage_$i=\$s"
  if [ "$new" = write ]; then
    # dash, ash and bash answer for what their printf could not write; dd says why.
    { [ -n "$text" ] && printf %s "$text" > "$s/new.$i"; } 2>/dev/null ||
      { dd if="$work/new.$i" of="$s/new.$i" bs=65536 2>"$err" && cmp -s "$work/new.$i" "$s/new.$i"; } ||
      put_back 7 "cannot write beside $p: $(tail_of_error)"
    # A share (vfat, vboxsf, 9p) may know no owners and modes. Then the content is all there is, unless it must not be read (F40).
    if ! { owned "$owner" "$s/new.$i" || chown "$owner" "$s/new.$i"; } 2>"$err" || ! chmod "$mode" "$s/new.$i" 2>"$err"; then
      case $(cat "$err") in
        *'not permitted'*|*'not supported'*|*'nvalid argument'*) ;;
        *) put_back 7 "cannot give $p its owner and mode: $(tail_of_error)" ;;
      esac
      kept=$(ls -ld "$s/new.$i")
      case $mode:${kept%% *} in # no more of it: there is a time of day, too
        *00:????------*) ;;
        *00:*) put_back 6 "the disk cannot keep $p from being read by others" ;;
      esac
      step "without-owner $p"
    fi
    staged="$staged $s/new.$i"
  fi
  # A copy beside the file: putting back is then one rename, and needs no room on the disk. (A hard link would look like
  # somebody's own to the next run, were this one killed.)
  if [ "$was" != absent ]; then
    # Only the bytes are asked of cp: on a share without owners it cannot give the copy the file's.
    cp -p "$p" "$s/old.$i" 2>"$err"
    if ! cmp -s "$work/was.$i" "$s/old.$i"; then
      same "$p" "$work/was.$i" || put_back 6 "$p was changed meanwhile"
      put_back 7 "cannot keep the old $p: $(tail_of_error)"
    fi
    staged="$staged $s/old.$i"
  fi
  i=$((i + 1))
done
# Written through before the first rename, all at once.
[ -z "$staged" ] || flush $staged

# How many containers run decides on the restart, which comes right behind rules and files.
case $policy in auto|never) if docker_pid; then count_containers 7<&- 8>&- 9>&- & counting=$! checks="$checks $!"; fi ;; esac

if [ -n "$variant" ]; then
  step rules
  if ! wait "$testing"; then
    REPLY=1; first_line "$work/untested"; err=$work/err.tables
    case $REPLY in
      4|124|143) put_back 8 'the xtables lock is held by another program' ;;
      *) put_back 6 "iptables-restore --test refuses the rules: $(tail_of_error)" ;;
    esac
  fi
  for t in $tables; do
    if [ -s "$work/$t.do" ]; then
      step "rules $t"
      eval "did_$t=1"
      # Each by itself, so that it is known which were written: what was not must not be put back.
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

i=0 touched=''
while [ "$i" -lt "$files" ]; do
  eval "p=\$path_$i was=\$was_$i new=\$new_$i s=\$stage_$i"
  step "file $p"
  # Once more, at the last moment: what is replaced is what was seen (F39), and it is a plain file (F38).
  if [ "$was" = absent ]; then if [ -e "$p" ] || [ -L "$p" ]; then put_back 6 "$p appeared meanwhile"; fi
  else same "$p" "$work/was.$i" || put_back 6 "$p was changed meanwhile"; fi
  eval "did_file_$i=1"
  if [ "$new" = write ]; then
    mv -f "$s/new.$i" "$p" 2>"$err" || { eval "did_file_$i=''"; put_back 7 "cannot replace $p: $(tail_of_error)"; }
  else
    rm -f "$p" 2>"$err" || { eval "did_file_$i=''"; put_back 7 "cannot remove $p: $(tail_of_error)"; }
  fi
  case " $touched " in *" ${p%/*} "*) ;; *) touched="$touched ${p%/*}" ;; esac
  i=$((i + 1))
done
[ -z "$touched" ] || flush $touched

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
    counts='? ?'
    if [ -n "$counting" ]; then wait "$counting"; IFS= read -r counts < "$work/counts"; fi
    case $policy:$counts in
      always:*|auto:'0 '*|auto:*' true') outcome=yes ;;
      auto:'? ?') outcome='pending ?' ;;
      auto:*) outcome="pending ${counts%% *}" ;;
      *) outcome="pending ${counts%% *}" ;;
    esac
  fi
  tell "restart $outcome"
fi
if [ "$outcome" = yes ]; then
  step restart
  if ! restart; then
    frame log; cat "$work/restart.log"; [ -z "$log" ] || tail -n 20 "$log" 2>/dev/null
    put_back 7 'Docker does not come back'
  fi
fi

step look
guarded=1
if [ -n "$proof_args" ]; then
  whole look
  step prove; speak
  set -f; set -- $proof_args; set +f
  prove "$@"
fi

# The watcher has read nothing: the client speaks only after it has seen "ready".
# (KILL: one that is told right after its start, with the traps still being ours, forgets a TERM and reads on.)
kill -9 "$watcher" 2>/dev/null; wait "$watcher" 2>/dev/null
watcher=''
last_words() { if [ -z "$proof_args" ]; then look; fi; frame ready; }
whole last_words
IFS= read -r line || put_back 9 'the client went away'
[ "$line" = keep ] || put_back 7 'put back as told'
leave kept 0
