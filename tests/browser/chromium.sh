#!/usr/bin/env bash
# Prints the path of a Chromium; on Debian as root it installs one. Ends with 1 and a sentence where there is none.
set -u
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

if [ -n "${FTLAB_CHROMIUM:-}" ]; then
  echo "$FTLAB_CHROMIUM"
elif find_browser; then
  :
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium by apt-get" >&2
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation; } >/dev/null 2>&1
  find_browser || { echo "Browser tests skipped: apt-get could not install chromium." >&2; exit 1; }
else
  echo "Browser tests skipped: no Chromium here; install one, or give its path in FTLAB_CHROMIUM." >&2
  exit 1
fi
