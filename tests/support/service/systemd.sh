#!/bin/bash
# A systemd of its own, as PID 1 in namespaces, over an overlay of this machine's root: what it
# changes is gone when it ends, except in the folder of results.
#
# Usage (as root): unshare -mpfCiu --propagation private systemd.sh LAYER RESULTS BIND...
#   LAYER    folder that is laid over /, such as `make install-units DESTDIR=LAYER` fills
#   RESULTS  folder seen as /results; its driver.sh is run, and systemd ends when that has
#   BIND     folders that are to be seen although they lie in /tmp
set -e
layer=$1 results=$2
shift 2

base=$(mktemp -d)
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root
for folder in tmp run var/tmp dev; do
    mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"
done
chmod 755 "$root/dev" "$root/run"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mkdir -p "$root/sys/fs/cgroup" "$root/results"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts" "$root/dev/mqueue" "$root/dev/hugepages"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount --bind "$results" "$root/results"
for folder in "$@"; do  # /tmp is another one by now
    mkdir -p "$root/$folder"
    mount --bind "$folder" "$root/$folder"
done

# Videos and the queue on one file system, as on most machines; overlays look like several.
mount -t tmpfs -o mode=755 tmpfs "$root/srv"
mkdir -p "$root/srv/state" "$root/var/lib/srstream"
mount --bind "$root/srv/state" "$root/var/lib/srstream"

# None of this machine's own services.
rm -rf "$root"/{usr/lib,lib,etc}/systemd/system/*.wants
cp -r "$layer/." "$root/"
system=$root/etc/systemd/system
cat >"$system/driver.service" <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash /results/driver.sh
StandardOutput=file:/results/driver.log
StandardError=inherit
TimeoutStartSec=600
END
cat >"$system/driver.target" <<END
[Unit]
DefaultDependencies=no
Wants=driver.service systemd-journald.service
END

cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=lxc PATH=/usr/bin:/bin:/usr/sbin:/sbin \
    /lib/systemd/systemd --system --unit=driver.target --show-status=0
