#!/bin/sh
# The process of the container upload: runs the command that it was given once for each backup that the container backup
# names in upload-request, and answers in upload-answer how it ended. An upload-cancel ends the command, after
# ten seconds with SIGKILL; other processes that it started may go on. It needs sh, cat, mv, rm and sleep.
trap 'exit 0' TERM INT HUP
cd /run/vestige-backup || exit 1

answer() {
  echo "the upload of $BACKUP ended with status $1"
  rm -f upload-running
  echo "$1 $BACKUP" >upload-answer.new && mv upload-answer.new upload-answer
}

export BACKUP
# An upload that ended with its container is not tried again: it may be what ended it.
if [ -e upload-running ]; then
  BACKUP=$(cat upload-running)
  answer 137
fi
while :; do
  if mv upload-request upload-running 2>/dev/null; then
    BACKUP=$(cat upload-running)
    (cd /tmp && exec "$@") &
    command=$!
    seconds=0
    while kill -0 "$command" 2>/dev/null; do
      sleep 1 &
      wait $!
      [ -e upload-cancel ] || continue
      case $seconds in
        0) echo "the upload of $BACKUP takes too long and is ended" && kill "$command" 2>/dev/null ;;
        10) kill -9 "$command" 2>/dev/null ;;
      esac
      seconds=$((seconds + 1))
    done
    wait "$command"
    answer $?
  fi
  sleep 1 &
  wait $!
done
