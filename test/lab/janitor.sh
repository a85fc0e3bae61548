#!/bin/sh
# Removes one lab, and is the only thing that does: the lab starts it first and holds its standard input open, so that
# it begins when the lab is closed and just as well when the owner crashes or is killed. What a lab consists of:
#   - network namespaces kf<id>-*, with every process and interface inside
#   - processes outside of them that work in its folder
#   - its folder, and its record
# usage: janitor.sh <id> <folder> <record>
set -u
id=$1 folder=$2 record=$3
# an empty word here would match the whole machine
[ "${#id}" -eq 4 ] && [ "${#folder}" -gt 4 ] || exit 2
cat >/dev/null

namespaces() { ip netns list | sed -n "s/^\(kf$id-[^ ]*\).*/\1/p"; }

# Processes outside of the namespaces that belong to the lab: their working directory is inside its folder.
workers() { find /proc/[0-9]*/cwd -maxdepth 0 \( -lname "$folder" -o -lname "$folder/*" \) 2>/dev/null | cut -d / -f 3; }

# A process may have forked while its namespace was read, hence the rounds.
round=0
while [ "$round" -lt 50 ]; do
  found=0
  for pid in $(workers) $(for name in $(namespaces); do ip netns pids "$name" 2>/dev/null; done); do
    found=1
    kill -KILL "$pid" 2>/dev/null
  done
  [ "$found" -eq 0 ] && break
  round=$((round + 1))
  [ "$round" -gt 1 ] && sleep 0.05
done

for name in $(namespaces); do ip netns del "$name"; done
if [ "${KATAFRACT_LAB_KEEP:-}" = 1 ]; then echo "kept: $folder"; else rm -rf "$folder"; fi
left=$(namespaces)
if [ -n "$left" ]; then
  echo "left behind: $left" >&2
  exit 1
fi
rm -f "$record"
