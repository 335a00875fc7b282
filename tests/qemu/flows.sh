# The flow table of DESIGN section 4 asked inside the VM, all of it in one run: flows.sh PORT prints "NAME: ANSWER" lines.
# LAN and outside are network namespaces here, since QEMU's user network has no neighbours. Runs as root, by busybox.
# An answer is "proxy", "none", or "WHO sees ADDRESS" from a web server that tells its client's address.
port=$1
work=/run/flows
rm -rf "$work"
mkdir -p "$work/www/cgi-bin"

if ! ip netns list | grep -q '^lan'; then
	for side in lan:eth7:192.168.99.1:192.168.99.100 outside:eth8:203.0.113.9:203.0.113.1; do
		IFS=: read -r who dev there here <<-END
			$side
		END
		ip netns add "$who"
		ip link add "$dev" type veth peer name eth0 netns "$who"
		ip addr add "$here/24" dev "$dev"
		ip link set "$dev" up
		ip -n "$who" addr add "$there/24" dev eth0
		ip -n "$who" link set lo up
		ip -n "$who" link set eth0 up
		ip -n "$who" route add default via "$here"
	done
fi

cgi() { # who: a web server's directory that says who it is and whom it sees
	mkdir -p "$work/$1/cgi-bin"
	printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s sees ${REMOTE_ADDR##*:}"\n' "$1" >"$work/$1/cgi-bin/who"
	chmod -R a+rX "$work/$1"
	chmod 755 "$work/$1/cgi-bin/who"
}
for who in outside uplink published; do cgi "$who"; done
ip netns exec outside httpd -f -p "203.0.113.9:$port" -h "$work/outside" &
servers=$!
httpd -f -p "10.0.2.15:$port" -h "$work/uplink" &
servers="$servers $!"

# The containers are made once, and found again after a reboot.
if ! docker inspect c-bridge >/dev/null 2>&1; then
	docker network create --subnet 172.30.1.0/24 own
	docker network create --subnet 172.30.2.0/24 -o com.docker.network.bridge.enable_ip_masquerade=false unmasked
	docker network create --subnet 172.30.3.0/24 --internal closed
	for network in bridge own unmasked closed; do
		publish=
		[ "$network" != bridge ] || publish='-p 8080:80'
		docker create --name "c-$network" --network "$network" $publish -v "$work/published:/www:ro" busybox \
			httpd -f -p 80 -h /www
	done
fi >/dev/null
docker start c-bridge c-own c-unmasked c-closed >/dev/null
set -- $(docker inspect -f '{{.State.Pid}}' c-bridge c-own c-unmasked c-closed)

mkdir "$work/asked"
cat >"$work/ask" <<'END'
# ask FLOW proxy ADDRESS PORT | ask FLOW who ADDRESS PORT: what comes is in asked/FLOW, FLOW.pid is there meanwhile
cd "${0%/*}/asked"
url=http://$3:$4/cgi-bin/who
if [ "$2" = proxy ]; then export "http_proxy=http://$3:$4" url=http://only-the-proxy-knows.test/; fi
wget -q -O - "$url" >"$1" 2>/dev/null &
echo $! >"$1.pid"
wait $!
rm -f "$1.pid"
END

# Everybody asks at the same time; "FLOW KIND ADDRESS PORT" lines.
beside() { # the words that lead into a network
	while read -r flow kind to at; do "$@" sh "$work/ask" "$flow" "$kind" "$to" "$at" & done
	wait
}

{
	beside nsenter "--net=/proc/$1/ns/net" <<-END &
		bridge-to-its-own-address proxy 172.17.0.1 $port
		bridge-to-unrelated-host who 203.0.113.9 $port
		bridge-to-uplink who 10.0.2.15 $port
		bridge-to-another-port-of-the-host proxy 10.0.2.2 9
		bridge-to-the-host proxy 10.0.2.2 $port
	END
	beside nsenter "--net=/proc/$2/ns/net" <<-END &
		own-to-its-own-gateway proxy 172.30.1.1 $port
		own-to-docker0 proxy 172.17.0.1 $port
		own-to-unrelated-host who 203.0.113.9 $port
		own-to-uplink who 10.0.2.15 $port
	END
	beside nsenter "--net=/proc/$3/ns/net" <<-END &
		unmasked-to-its-own-gateway proxy 172.30.2.1 $port
		unmasked-to-docker0 proxy 172.17.0.1 $port
	END
	beside nsenter "--net=/proc/$4/ns/net" <<-END &
		internal-to-its-own-gateway proxy 172.30.3.1 $port
		internal-to-docker0 proxy 172.17.0.1 $port
		internal-to-the-host proxy 10.0.2.2 $port
	END
	beside ip netns exec lan <<-END &
		lan-to-the-vm proxy 192.168.99.100 $port
		lan-to-docker0 proxy 172.17.0.1 $port
		lan-to-the-host-through-the-vm proxy 10.0.2.2 $port
	END
	beside ip netns exec outside <<-END &
		outside-to-a-published-port who 203.0.113.1 8080
	END
	wait
} &
everybody=$!

# Who is not answered would wait for minutes. It ends when nothing has come for ten rounds, not at a time of its own: on a
# busy machine the rounds take longer, and the answers follow each other.
quiet=0 come=''
while [ "$quiet" -lt 10 ] && kill -0 "$everybody" 2>/dev/null; do
	sleep 1
	quiet=$((quiet + 1)) now=''
	for file in "$work/asked"/*; do
		case $file in *.pid) continue ;; esac
		if [ -s "$file" ]; then now="$now $file!"; else now="$now $file"; fi
	done
	[ "$now" = "$come" ] || quiet=0 come=$now
done
while kill -0 "$everybody" 2>/dev/null; do
	for file in "$work/asked"/*.pid; do kill "$(cat "$file")"; done 2>/dev/null
	sleep 1
done

for file in "$work/asked"/*; do
	said=$(cat "$file")
	case $said in
	'the proxy knows') said=proxy ;;
	*' sees '*) said=${said%]} ;;
	*) said=none ;;
	esac
	echo "${file##*/}: $said"
done
kill $servers
docker kill c-bridge c-own c-unmasked c-closed >/dev/null
