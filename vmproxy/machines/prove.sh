# The proof: the same question from the VM, from a container on docker0's network, and from one on a user-defined network.
# No image is pulled: an empty one is imported, and the container runs the VM's own programs, bound read-only.
# Needs: $work (a root-owned directory with the files connect and get), frame, limit, nonce, ask_text (the text of ask.sh).
# What it makes carries the label vmproxy=proof and is removed at the end, and by the next proof where this one was cut short.

proof_ask() { # where host port: both questions, so that deciding stays with the client
  for q in connect get; do
    # Who is silent once is not asked again: it would only be waited for twice.
    frame "leg $1 $q"; ask "$2" "$3" "$work/$q" "$work" || break
  done
}

proof_clean() {
  ids=$(limit 20 docker ps -aq --filter label=vmproxy=proof 2>/dev/null) && [ -n "$ids" ] && limit 30 docker rm -f $ids
  ids=$(limit 20 docker network ls -q --filter label=vmproxy=proof 2>/dev/null) && [ -n "$ids" ] && limit 30 docker network rm $ids
  ids=$(limit 20 docker images -q --filter label=vmproxy=proof 2>/dev/null) && [ -n "$ids" ] && limit 30 docker rmi -f $ids
} >/dev/null 2>&1

proof_container() { # leg network host port
  set -- "$1" "$2" "$3" "$4" /bin /sbin /lib /lib64 /usr
  leg=$1 net=$2 host=$3 port=$4; shift 4
  binds=''
  for d in "$@"; do [ -d "$d" ] && binds="$binds -v $d:$d:ro"; done
  # $binds is made of the constant words above and is meant to split.
  frame "run $leg"
  { printf '%s\n' "$host" "$port"; cat "$work/connect"; printf '@%s\n' "$nonce"; cat "$work/get"; } |
    limit 60 docker run --rm -i --network "$net" --label vmproxy=proof --entrypoint /bin/sh $binds "vmproxy-proof:$nonce" -c "$proof_inside" proof "$nonce" "$leg" 2>"$work/err"
  rc=$?
  frame "ran $leg $rc"; dd if="$work/err" bs=2048 count=1 2>/dev/null
}

proof_inside='
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
nonce=$1 leg=$2
IFS= read -r host; IFS= read -r port
mkdir -p /vmproxy; exec 3>/vmproxy/connect
while IFS= read -r line; do
  if [ "$line" = "@$nonce" ]; then exec 3>/vmproxy/get; else printf "%s\n" "$line" >&3; fi
done
exec 3>&-
for q in connect get; do printf "\n@%s leg %s %s\n" "$nonce" "$leg" "$q"; ask "$host" "$port" "/vmproxy/$q" /vmproxy || break; done
'

prove() { # vm_host vm_port container_host container_port legs…
  know_limits # docker says 125 to 127 for itself, and is not to be asked twice
  vm_host=$1 vm_port=$2 in_host=$3 in_port=$4; shift 4
  # Only now: the question before a change, under the same name, has been put.
  if [ -f "$work/fetch" ]; then cat "$work/fetch" >"$work/connect"; cat "$work/fetch" >"$work/get"; fi
  # `ask` is needed inside the container too: its text goes in front (a constant, no value in it).
  proof_inside="$ask_text
$proof_inside"
  for leg in "$@"; do
    case $leg in
      vm) proof_ask vm "$vm_host" "$vm_port" ;;
      bridge|bridge6=*|network)
        to=$in_host; case $leg in *=*) to=${leg#*=} leg=${leg%%=*} ;; esac
        if [ -z "${proof_image:-}" ]; then
          proof_clean
          # 10,240 zero bytes are an empty tar archive (POSIX ustar: two zero blocks end it).
          if proof_image=$(dd if=/dev/zero bs=10240 count=1 2>/dev/null | limit 60 docker import --change 'LABEL vmproxy=proof' - "vmproxy-proof:$nonce" 2>"$work/err"); then :; else
            frame "ran $leg 125"; dd if="$work/err" bs=2048 count=1 2>/dev/null; proof_image=''; continue
          fi
        fi
        net=bridge
        if [ "$leg" = network ]; then
          net=vmproxy-proof-$nonce
          limit 30 docker network create --label vmproxy=proof "$net" >/dev/null 2>"$work/err" || { frame "ran $leg 125"; dd if="$work/err" bs=2048 count=1 2>/dev/null; continue; }
        fi
        proof_container "$leg" "$net" "$to" "$in_port" ;;
    esac
  done
  if [ -n "${proof_image:-}" ]; then proof_clean; proof_image=''; fi
  frame proved
}
