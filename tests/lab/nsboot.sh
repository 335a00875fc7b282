#!/bin/sh
# The VM's boot script (upstream's stands at the same place): the persistent directory, profile, sshd, docker, bootlocal.sh.
exec >>/var/log/boot.log 2>&1
. /run/lab/options
mkdir -p /var/lib/boot2docker/etc /var/lib/boot2docker/log
chown docker:docker /var/lib/boot2docker
chown docker /var/lib/boot2docker/log
if [ -f /var/lib/boot2docker/profile ]; then
    . /var/lib/boot2docker/profile
fi
mkdir -p /var/lib/boot2docker/ssh
/usr/local/etc/init.d/openssh start
if [ -e /var/lib/boot2docker/bootsync.sh ]; then
    sh /var/lib/boot2docker/bootsync.sh
fi
if [ "$lab_docker" != no ]; then
    env -i PATH="$PATH" /etc/init.d/docker start
fi
if [ -e /var/lib/boot2docker/bootlocal.sh ]; then
    sh /var/lib/boot2docker/bootlocal.sh &
fi
