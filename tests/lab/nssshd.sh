#!/bin/sh
# The VM's ssh server: OpenSSH or dropbear, host keys kept on the persistent disk, the public one shown in /run/lab.
. /run/lab/options
keys=/var/lib/boot2docker/ssh
mkdir -p /run/sshd "$keys"
if [ "$lab_ssh" = dropbear ]; then
    key=$keys/dropbear_ed25519_key
    [ -f "$key" ] || dropbearkey -t ed25519 -f "$key" >/dev/null 2>&1
    dropbearkey -y -f "$key" | grep ^ssh- >/run/lab/host_key.pub
    exec dropbear -r "$key" -p 22
fi
key=$keys/ssh_host_ed25519_key
[ -f "$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$key"
cp "$key.pub" /run/lab/host_key.pub
exec /usr/sbin/sshd
