# The proof alone: a work directory that is gone afterwards. Comes behind observe.sh, ask.sh and prove.sh.
hear
run=/run; [ -d /run ] && [ -w /run ] || run=/var/run
work=$(mktemp -d "$run/vmproxy-proof-XXXXXX") || { frame 'result refused 6 cannot make a work directory'; exit 0; }
trap 'proof_clean; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
trap : PIPE
proof_args=''
while IFS= read -r line && [ "$line" != . ]; do
  case $line in
    'blob '*) set -f; set -- $line; set +f; dd ibs=1 obs=4096 count="$3" of="$work/$2" 2>/dev/null; IFS= read -r REPLY ;;
    'lines '*) set -f; set -- $line; set +f; lines "$2" "$3" ;;
    'prove '*) proof_args=${line#prove } ;;
  esac
done
set -f; set -- $proof_args; set +f
prove "$@"
frame end
