#!/bin/sh
# Makes what `telemetry.yaml` reads from and writes to. What is there already is left alone.
set -eu

for bucket in landing bronze silver gold vibranium; do
  aws s3api create-bucket --bucket "nexus-dev-$bucket-us-west-2" \
    --create-bucket-configuration LocationConstraint=us-west-2 >/dev/null 2>&1 || true
done

queue=$(aws sqs create-queue --queue-name nexus-dev-uploads --query QueueUrl --output text)
arn=$(aws sqs get-queue-attributes --queue-url "$queue" --attribute-names QueueArn \
  --query Attributes.QueueArn --output text)
aws s3api put-bucket-notification-configuration --bucket nexus-dev-landing-us-west-2 --notification-configuration \
  "{\"QueueConfigurations\":[{\"QueueArn\":\"$arn\",\"Events\":[\"s3:ObjectCreated:*\"]}]}"

aws kinesis create-stream --stream-name nexus-dev-intake --shard-count 2 2>/dev/null || true
