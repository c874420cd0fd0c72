#!/usr/bin/env bash
# Run a command where SLURM, MPI of the system and ssh are not installed: bare.sh COMMAND...
#
# Needs root. In a mount namespace of its own, /dev/null lies over each of their programs and libraries.
set -euo pipefail
# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --propagation private bash -c '
    shopt -s nullglob
    for file in /usr/{,local/}{bin,sbin}/{s{batch,run,control,info,cancel,queue,alloc,acct,lurmctld,lurmd},munged,mpi{run,exec}*,orted,ompi_info*,ssh,sshd,pdsh} \
        /usr/lib/*/libmpi*.so.* /usr/lib/*/libpmi*.so.*; do
        [ -e "$file" ] && mount --bind /dev/null "$(readlink -f "$file")" 2>/dev/null || true
    done
    exec "$@"' bare "$@"
