#!/usr/bin/env bash
# Ends with 0 where Slurm is there; on Debian as root it installs it. Otherwise ends with 1 and a sentence.
set -u
find_slurm() { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null

if find_slurm; then
  exit 0
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Slurm by apt-get" >&2
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1
  find_slurm || { echo "Slurm tests skipped: apt-get could not install slurmctld, slurmd and munge." >&2; exit 1; }
else
  echo "Slurm tests skipped: slurmctld, slurmd and munged are not here, or this is not root." >&2
  exit 1
fi
