#!/bin/sh
# The page of every guest: its name, and the client's address as the guest sees it.
address=${REMOTE_ADDR#[}
address=${address%]}
printf 'Content-Type: text/plain\r\n\r\n%s %s\n' "$GUEST_NAME" "${address#::ffff:}"
