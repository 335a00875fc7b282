#!/bin/sh
# The distribution's boot script: disk, profile, ssh, the user's bootsync.sh, Docker, the user's bootlocal.sh beside it.
# As on the classic VM the profile is sourced by this very shell before ssh is up: a broken profile locks everybody out.
/etc/init.d/autoformat start
data=/var/lib/boot2docker
mkdir -p "$data/etc" "$data/log"
chown docker:docker "$data"
chown docker "$data/log"
[ ! -s "$data/etc/hostname" ] || sethostname "$(cat "$data/etc/hostname")"
cgroupfs-mount

if [ -f "$data/profile" ]; then
	. "$data/profile"
fi

if [ -d "$data/ssh" ]; then
	rm -rf /usr/local/etc/ssh
else
	mv /usr/local/etc/ssh "$data/ssh"
fi
ln -s "$data/ssh" /usr/local/etc/ssh
/usr/local/etc/init.d/openssh start

if [ -e "$data/bootsync.sh" ]; then
	sh "$data/bootsync.sh"
fi
env -i PATH="$PATH" /etc/init.d/docker start
if [ -e "$data/bootlocal.sh" ]; then
	sh "$data/bootlocal.sh" &
fi
/opt/bootlocal.sh &
