#!/bin/sh
# From a bare set of new namespaces to a VM: run as "sh nsstage.sh STATE TREE GUEST OVERLAY SHELL VARIANT" in new mount,
# pid, uts, ipc and cgroup namespaces, inside the VM's network namespace, as pid 1. STATE is the VM's directory:
# disk/ keeps over a reset, root/ is where the RAM root is mounted; TREE may be several directories, the upper ones first,
# with colons. Everything mounted here ends with pid 1.
set -e
state=$1 tree=$2 guest=$3 overlay=$4 shell=$5 variant=$6
read -r pid _ </proc/self/stat
mount --make-rprivate /
hostname boot2docker

mount -t tmpfs -o size=512m,mode=755 ram "$state/root"
mkdir "$state/root/upper" "$state/root/work" "$state/root/vm"
root=$state/root/vm
mount -t overlay -o "lowerdir=$tree,upperdir=$state/root/upper,workdir=$state/root/work" root "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/lab" "$root/run/lock"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
node() { mknod -m 666 "$root/dev/$1" c "$2" "$3"; }
node null 1 3
node zero 1 5
node full 1 7
node random 1 8
node urandom 1 9
node tty 5 0

# cgroups: the namespace's root is this VM's own group in every hierarchy of this machine.
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    # A group with processes of its own may not hand controllers down: they move to a leaf.
    mkdir "$root/sys/fs/cgroup/init"
    echo 1 >"$root/sys/fs/cgroup/init/cgroup.procs"
    for controller in $(cat "$root/sys/fs/cgroup/cgroup.controllers"); do
        echo "+$controller" >"$root/sys/fs/cgroup/cgroup.subtree_control" || :
    done
else
    mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
    while IFS=: read -r _ controllers _; do
        case $controllers in
        '') mkdir "$root/sys/fs/cgroup/unified" && mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified" ;;
        *)
            directory=$root/sys/fs/cgroup/${controllers#name=}
            mkdir "$directory"
            case $controllers in name=*) controllers=none,$controllers ;; esac
            mount -t cgroup -o "$controllers" cgroup "$directory"
            ;;
        esac
    done <"$root/proc/self/cgroup"
fi

mkdir -p "$state/disk/boot2docker" "$state/disk/docker"
mount --bind "$state/disk/boot2docker" "$root/var/lib/boot2docker"
mount --bind "$state/disk/docker" "$root/var/lib/docker"

cp "$guest/init.d/docker" "$root/etc/init.d/docker"
case $guest in
*/stub)
    cp "$guest"/bin/* "$root/usr/local/bin/"
    chmod 755 "$root"/usr/local/bin/*
    mkdir "$root/run/lab/stub"
    ;;
esac
mkdir -p "$root/opt" "$root/usr/local/etc/init.d" "$root/usr/local/etc/ssh"
cp "${0%/*}/nsboot.sh" "$root/opt/bootsync.sh"
cp "${0%/*}/nssshd.sh" "$root/usr/local/etc/init.d/openssh"
chmod 755 "$root/etc/init.d/docker" "$root/opt/bootsync.sh" "$root/usr/local/etc/init.d/openssh"
ln -sf "$shell" "$root/bin/sh"
for name in iptables ip6tables; do
    for tail in '' -save -restore; do
        ln -sf "/usr/sbin/$name-$variant$tail" "$root/etc/alternatives/$name$tail"
    done
done
if [ ! -f "$state/key" ]; then
    chroot "$root" ssh-keygen -q -t ed25519 -N '' -C lab -f /tmp/key
    mv "$root/tmp/key" "$root/tmp/key.pub" "$state/"
fi
for home in home/docker root; do
    mkdir -m 700 "$root/$home/.ssh"
    cp "$state/key.pub" "$root/$home/.ssh/authorized_keys"
done
chown -R 1000:1000 "$root/home/docker"
cp "$state/options" "$root/run/lab/options"
[ -z "$overlay" ] || cp -R -P --preserve=mode,links "$overlay/." "$root/"

printf '%s\n' '::sysinit:/usr/bin/env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /opt/bootsync.sh' >"$root/etc/inittab"
printf '%s\n' "$pid" >"$state/pid.new"
cd "$root"
mkdir .old
pivot_root . .old
exec chroot . /bin/sh -c 'mv "/.old$0/pid.new" "/.old$0/pid" && umount -l /.old && rmdir /.old && exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin busybox init' "$state"
