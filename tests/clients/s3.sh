#!/bin/sh
# What one does with the AWS CLI: the same as the other clients here. Each command is a process of its own.
set -eu
"$AWS_CLI" s3api put-object --bucket "$STAGING" --key "$KEY" >/dev/null
listed=$("$AWS_CLI" s3api list-objects-v2 --bucket "$STAGING" --prefix "$KEY" --query 'Contents[].Key' --output text)
[ "$listed" = "$KEY" ]
"$AWS_CLI" s3api delete-object --bucket "$STAGING" --key "$KEY" >/dev/null
for _ in $(seq "$ROUNDS"); do
    if refused=$("$AWS_CLI" s3api delete-object --bucket "$PRODUCTION" --key "$KEY" 2>&1); then
        echo "production was open" >&2
        exit 1
    fi
    case $refused in
        *AccessDenied*) echo "denied" $refused ;;
        *)
            echo "$refused" >&2
            exit 1
            ;;
    esac
done
