# The look: read-only, POSIX sh, framed by a nonce that nothing in the VM can know beforehand.
# What to look at are the variables want_…, constants of ours that come with the script (see sending.look_words); it is
# no data, since data is read byte by byte. `hear` reads from stdin: the nonce, then "resolve NAME" if any, up to ".".
# Values arrive as data by `read` and are only ever used inside double quotes.

nl='
'
hear() {
  IFS= read -r nonce
  want_name=''
  while IFS= read -r line && [ "$line" != . ]; do
    case $line in 'resolve '*) want_name=${line#resolve } ;; esac
  done
}

said=''
frame() { printf '%s\n@%s %s\n' "$said" "$nonce" "$*"; said=''; }
# The same, to be said along with the next frame: whoever listens is not woken for each.
tell() { said="$said$nl@$nonce $*$nl"; }
# What a function says, in one piece, which is one packet: sshd sends small pieces only one for each answer of ours.
whole() { "$@" | dd ibs=65536 obs=262144 2>/dev/null; said=''; }
lines() { # name count: so many lines of stdin into a work file, and text; short and plain, no program is needed
  n=$2 text=''
  while [ "$n" -gt 0 ] && IFS= read -r line; do text=$text$line$nl; n=$((n - 1)); done
  printf %s "$text" > "$work/$1"
}
have() { command -v "$1" >/dev/null 2>&1; }
first_line() { [ -r "$1" ] && { IFS= read -r REPLY < "$1" || [ -n "$REPLY" ]; }; } 2>/dev/null

guarded=''
# timeout(1) of coreutils and of busybox since 1.30 share this form; others say 127, and have run nothing. Where it is
# missing the client's own limit ends the run. 9 is the lock of a change (change.sh), which is no program's: closed here,
# since for a function called without it the shell itself would keep it, also in a trap that runs then.
limits=''
limit() { # SECONDS COMMAND...: one that may be run twice where it says 125 to 127 by itself
  if [ "$limits" = yes ]; then timeout "$@" 9>&-; return; fi
  if [ -z "$limits" ] && have timeout; then
    timeout "$@" 9>&-
    limited=$?
    case $limited in 12[567]) ;; *) limits=yes; return "$limited" ;; esac
  fi
  shift; "$@" 9>&-
}
know_limits() { # before others
  [ -z "$limits" ] || return 0
  limits=no
  if have timeout && timeout 5 true 2>/dev/null; then limits=yes; fi
}

docker_pid() { # REPLY: the running daemon's process id; a stale pid file names another program or none
  for f in /var/run/docker.pid /run/docker.pid; do
    first_line "$f" || continue
    pid=$REPLY
    case $pid in ''|*[!0-9]*) continue ;; esac
    first_line "/proc/$pid/comm" || continue
    case $REPLY in *docker*) REPLY=$pid; return 0 ;; esac
  done
  REPLY=''; return 1
}

look_system() {
  REPLY=''; first_line /proc/sys/kernel/random/boot_id
  uid=''
  while IFS='	 ' read -r key _ value _; do # the line says: Uid: real effective saved ...
    if [ "$key" = Uid: ]; then uid=$value; break; fi
  done </proc/self/status 2>/dev/null
  tell "system ${uid:-$(id -u)} $REPLY"
  tell os
  # A short file is read by the shell itself: cat would take longer to start.
  while IFS= read -r line || [ -n "$line" ]; do
    [ "${#said}" -lt 65536 ] || break
    said="$said$line$nl"
  done 2>/dev/null </etc/os-release
  found=''
  for cmd in ip netstat route docker dockerd systemctl rc-service initctl service flock timeout setsid getent \
    iptables iptables-save iptables-restore iptables-nft-save iptables-legacy-save bash nc curl wget; do
    command -v "$cmd" && found="$found $cmd"
  done >/dev/null 2>&1
  tell "have$found"
  for p in $want_paths; do # paths of ours without blanks (shell.py refuses others); * is replaced by what there is
    # Where a directory really is: boot2docker's own is a link to the disk's.
    if [ -e "$p" ]; then tell "path $p"; if [ -d "$p" ] && cd -P "$p" 2>/dev/null; then said="$said$PWD$nl"; fi; fi
  done
  for d in /sys/class/net/*; do
    if [ -d "$d/bridge" ]; then tell "bridge ${d##*/}"; elif [ -d "$d" ]; then tell "interface ${d##*/}"; fi
  done
}

look_network() {
  # First what reads best: ip shows every hop and metric; /proc/net/route has metrics, and netstat -rn has not.
  frame network # both with one program; busybox's ip has no -batch
  if have ip && ip -o -batch - 2>/dev/null <<END
route show table all
addr show
END
  then :
  else
    frame routes
    if have ip && ip route show table all 2>/dev/null; then :
    elif [ -r /proc/net/route ]; then cat /proc/net/route
    elif have route && route -n 2>/dev/null; then :
    elif have netstat; then netstat -rn 2>/dev/null; fi
    frame addresses; ip -o addr show 2>/dev/null || ifconfig -a 2>/dev/null
  fi
  if [ -n "$want_save" ] && have ip; then
    frame links; ip -o link show 2>/dev/null
    frame save; ip route save table all 2>/dev/null
  fi
  if [ -n "$want_name" ]; then
    frame resolved; getent ahostsv4 "$want_name" 2>/dev/null || nslookup "$want_name" 2>/dev/null
  fi
}

at_work() { # does a run that holds the lock live? It has written down its process and boot.
  for f in /run/vmproxy /var/run/vmproxy; do
    REPLY=''; first_line "$f/held/owner" || first_line "$f/lock" || continue
    case ${REPLY% *} in ''|*[!0-9]*) continue ;; esac
    owner=$REPLY; first_line /proc/sys/kernel/random/boot_id
    if [ "${owner#* }" = "$REPLY" ] && kill -0 "${owner% *}" 2>/dev/null; then return 0; fi
  done
  return 1
}

look_listeners() {
  # ss asks for these sockets alone; to print /proc/net/tcp the kernel goes through a table for all connections that
  # there could ever be, which takes 4 ms on a host of 24 GiB. 0A is TCP_LISTEN (include/net/tcp_states.h).
  frame listeners
  if have ss && ss -ltn 2>/dev/null; then :; else grep -h ' 0A ' /proc/net/tcp /proc/net/tcp6 2>/dev/null; fi
}

look_rules() {
  # What a run that was killed left in its work area; beside the files, see look_files.
  for d in /run/vmproxy/work /var/run/vmproxy/work; do [ -n "$busy" ] || { [ -e "$d" ] && tell "leftover $d" && break; }; done
  later /proc/mounts
  # One of many looks (they leave out what listens) that hangs is ended by the client; in the middle of a change
  # (commit.sh: guarded) the change has to go on.
  dump() { # not by limit: where timeout takes its words otherwise, it says 127 and has run nothing
    frame "dump $1"
    rc=127
    if [ -n "$guarded$want_listeners" ] && have timeout; then timeout 20 "$2" 2>/dev/null; rc=$?; fi
    if [ "$rc" = 127 ]; then "$2" 2>/dev/null; rc=$?; fi
    tell "dumped $1 $rc"
  }
  if have iptables-nft-save || have iptables-legacy-save; then
    have iptables-nft-save && dump nft iptables-nft-save
    # Reading legacy tables creates them (LIBRARIES §2); so only where the kernel already has some.
    if have iptables-legacy-save && { ! have iptables-nft-save || first_line /proc/net/ip_tables_names; }; then
      dump legacy iptables-legacy-save
    fi
  elif have iptables-save; then dump default iptables-save; fi
  # IPv6 only where a bridge has it: scope 00 is global, unique local addresses too (include/net/ipv6.h).
  six=''
  while read -r _ _ _ scope _ name; do
    if [ "$scope" = 00 ] && [ -d "/sys/class/net/$name/bridge" ]; then six=1; fi
  done 2>/dev/null </proc/net/if_inet6
  if [ -n "$six" ]; then
    if have ip6tables-nft-save || have ip6tables-legacy-save; then
      have ip6tables-nft-save && dump nft6 ip6tables-nft-save
      if have ip6tables-legacy-save && { ! have ip6tables-nft-save || first_line /proc/net/ip_tables_names; }; then
        dump legacy6 ip6tables-legacy-save
      fi
    elif have ip6tables-save; then dump default6 ip6tables-save; fi
  fi
  if [ -n "$want_listeners" ]; then look_listeners; fi
  if docker_pid; then tell "daemon $REPLY"; later "/proc/$REPLY/environ"; fi
  look_docker
}

look_docker() { # where a daemon.json has, or may have had, proxies, and where it is asked for: what Docker makes of it
  docker_pid || REPLY=''
  daemon=$REPLY newer='' # f is its pid file, which it writes when it starts
  for p in $want_configs; do
    if [ -f "$p" ] && grep -q '"proxies"' "$p" 2>/dev/null; then want_docker=1; fi
    if [ -z "$daemon" ]; then continue; fi
    # Written to since then (-nt is in dash, busybox ash and bash), or taken away: the directory has changed, and nothing
    # in it is new. (Docker before 24 makes its key.json there.)
    if [ "$p" -nt "$f" ]; then newer="$newer $p"; want_docker=1
    elif [ "${p%/*}" -nt "$f" ]; then
      taken=1
      for t in "${p%/*}"/*; do if [ "$t" -nt "$f" ]; then taken=''; fi; done
      [ -z "$taken" ] || want_docker=1
    fi
  done
  [ -n "$want_docker" ] || return 0
  if [ -n "$daemon" ]; then
    frame command; cat "/proc/$daemon/cmdline" 2>/dev/null
    frame newer; printf '%s' "$newer"
    frame info
    limit 10 docker info --format '{{json .ServerVersion}} {{json .HTTPProxy}} {{json .HTTPSProxy}} {{json .NoProxy}}' 2>/dev/null
  fi
  if have dockerd; then frame version; limit 10 dockerd --version 2>/dev/null; fi
}

# What is to be read whole is read at the end, by one program, which takes as long to start as ten files to read.
later() { case $nl$bodies in *"$nl$1$nl"*) ;; *) bodies="$bodies$1$nl" ;; esac; }
# head(1) puts a line with the path before each: here as nobody else would write it, since how depends on the nonce.
spell() { # root: a way to write the root directory
  root='' rest=$nonce
  while [ -n "$rest" ]; do
    case $rest in [0-3]*) root=$root/ ;; [4-7]*) root=$root/. ;; [89ab]*) root=$root//. ;; *) root=$root/./. ;; esac
    rest=${rest#?}
  done
}
look_bodies() {
  [ -n "$bodies" ] || return 0
  spell
  set -f; IFS=$nl; set -- $bodies; unset IFS; set +f
  for p do set -- "$@" "$root$p"; shift; done
  frame "bodies $root"; head -v -c 1114112 -- "$@" 2>/dev/null
  rc=$?
  frame "whole $rc"
  if [ "$rc" = 0 ]; then return; fi
  for p do # one of them is gone by now, or this VM's head is another
    p=${p#"$root"}
    frame "body $p"
    case $p in /proc/*) cat "$p" 2>/dev/null ;; *) dd if="$p" bs=65536 count=17 2>/dev/null ;; esac
  done
}

look_files() {
  for p in $want_texts; do
    # Where /usr is merged, /lib is a link into it, and its files have been seen there.
    case $p in /lib/*) if [ -L /lib ]; then continue; fi ;; *"$nl"*) continue ;; esac # no name of two lines, either
    if [ -f "$p" ] && [ -r "$p" ]; then tell "text $p"; later "$p"; fi
  done
  set --
  for p in $want_files; do
    tell "stat $p"
    kind=''
    if [ -L "$p" ]; then kind=link
    elif [ -f "$p" ]; then kind=file; if [ -x "$p" ]; then kind=program; fi
    elif [ -d "$p" ]; then kind=dir
    elif [ -e "$p" ]; then kind=other; fi
    if [ -n "$kind" ]; then set -- "$@" "$p"; fi
    for t in "${p%/*}"/.vmproxy-*; do [ -n "$busy" ] || { [ -e "$t" ] && tell "leftover $t"; }; done
    case $kind in file | program) tell "file $p"; later "$p" ;; esac
    [ -n "$want_stats" ] || tell "kind $kind $p" # what the shell itself knows
  done
  if [ -n "$want_stats" ] && [ "$#" != 0 ]; then frame stats; ls -ldin -- "$@" 2>/dev/null; fi
}

parse_files_there() { # what this VM's shell says of the files
  for p in $want_files; do
    if [ -f "$p" ] && [ ! -L "$p" ]; then
      frame "parse $p"; sh -n "$p" 2>&1
      rc=$?
      # The here-document probe: where the file's tail is swallowed, a stray ")" behind it goes unnoticed.
      { cat "$p"; printf '\n)\n'; } 2>/dev/null | sh -n >/dev/null 2>&1
      frame "parsed $rc $? $p"
    fi
  done
}

look_syntax() { parse_files_there; frame end; }

look_rest() { # what a look of many has left out
  busy='' bodies='' want_texts=''
  look_listeners; look_files; frame end
}

look() {
  busy='' bodies=''; if at_work; then busy=1; tell busy; fi
  look_system; look_network
  if [ -n "$want_rules" ]; then look_rules; fi
  look_files; look_bodies
  if [ -n "$want_syntax" ]; then parse_files_there; fi
  frame end
}
