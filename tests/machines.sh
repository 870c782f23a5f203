#!/usr/bin/env bash
# Machines of which two have an ssh server, and on the third a command runs:
#
#     unshare --mount --net --pid --fork --kill-child --mount-proc tests/machines.sh SERVER USER SHARED COMMAND...
#
# They are namespaces of this machine, each with its own network, processes and file system (what they write is gone at
# the end). Their only user is root, whose home, /home/root, is a copy of the directory SERVER at 10.77.0.2 and 10.77.0.3,
# and of USER at 10.77.0.1, where the command runs. SHARED is a directory that all see. When the command ends,
# everything else does.
set -euo pipefail

if [ "$1" = inside ]; then
    home=$2 shared=$3
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
    mount -t proc proc /mnt/root/proc
    mount --rbind /dev /mnt/root/dev
    mount -t tmpfs tmpfs /mnt/root/dev/shm
    mkdir -p /mnt/root/tmp/ray
    mount -t tmpfs tmpfs /mnt/root/tmp/ray
    mount --bind "$shared" "/mnt/root$shared"
    mkdir -p /mnt/root/run/sshd
    cp -a "$home" /mnt/root/home/root
    chown -R 0:0 /mnt/root/home/root
    sed -i 's|^root:.*|root:x:0:0::/home/root:/bin/bash|' /mnt/root/etc/passwd
    HOME=/home/root exec chroot /mnt/root "${@:4}"
fi

ip link set lo up
ip link add name lan type bridge
ip link set lan up
mount -t tmpfs tmpfs /run
machine() { # ADDRESS HOME COMMAND...
    local name="m${1##*.}"
    ip netns add "$name"
    ip link add "$name" master lan type veth peer name eth0 netns "$name"
    ip link set "$name" up
    ip -n "$name" link set lo up
    ip -n "$name" addr add "$1/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" route add default dev eth0
    ip netns exec "$name" unshare --mount --pid --fork --kill-child "$0" inside "$2" "$shared" "${@:3}"
}
server=$1 user=$2 shared=$3
for address in 10.77.0.2 10.77.0.3; do
    machine $address "$server" /usr/sbin/sshd -D -e -h /home/root/.ssh/host_key -o UsePAM=no -o StrictModes=no \
        2> "$shared/sshd-$address.log" &
done
machine 10.77.0.1 "$user" "${@:4}"
