#!/bin/sh
# install.sh ROOT WORK USER PACKAGE...: makes the user (name:uid:home) and installs the packages in an overlay over ROOT;
# what changed is in WORK/upper.
# Runs in a mount namespace of its own: nothing stays mounted, whatever happens here.
set -eu
root=$1 work=$2 user=$3
shift 3
mkdir -p "$work/upper" "$work/overlay" "$work/merged"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/overlay" "$work/merged"
mount --rbind /dev "$work/merged/dev"
mount -t proc proc "$work/merged/proc"
cp -L /etc/resolv.conf "$work/merged/etc/resolv.conf"
# Packages must not start their services, and postgresql-common must not make a cluster with a key of its own.
printf '#!/bin/sh\nexit 101\n' > "$work/merged/usr/sbin/policy-rc.d"
chmod 755 "$work/merged/usr/sbin/policy-rc.d"
mkdir -p "$work/merged/etc/postgresql-common"
echo 'create_main_cluster = false' > "$work/merged/etc/postgresql-common/createcluster.conf"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
name=${user%%:*} home=${user##*:} uid=${user#*:}
uid=${uid%%:*}
chroot "$work/merged" groupadd --gid "$uid" "$name"
chroot "$work/merged" useradd --uid "$uid" --gid "$uid" --home-dir "$home" --no-create-home --shell /bin/bash "$name"
chroot "$work/merged" apt-get update -qq
chroot "$work/merged" apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "$@"
chroot "$work/merged" apt-get clean
rm -rf "$work/merged/etc/resolv.conf" "$work/merged/var/cache/ldconfig" "$work/merged/var/lib/apt/lists"
