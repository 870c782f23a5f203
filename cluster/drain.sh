#!/usr/bin/env bash
# Waits until the cloud says that it takes this spot machine back, and tells Ray, which starts no process here any more.
# Tune may still begin a trial in a process that is here; it goes on elsewhere from its last checkpoint.
#
#     drain.sh aws|gcp|azure
set -uo pipefail

metadata() { curl --silent --fail --max-time 5 "http://169.254.169.254/$1" "${@:2}"; }

case $1 in
aws)
    seconds=120
    notice() {
        token=$(metadata latest/api/token -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') &&
            metadata latest/meta-data/spot/instance-action -H "X-aws-ec2-metadata-token: $token"
    }
    ;;
gcp)
    seconds=30
    notice() { metadata computeMetadata/v1/instance/preempted -H 'Metadata-Flavor: Google' | grep TRUE; }
    ;;
azure)
    seconds=30
    notice() { metadata 'metadata/scheduledevents?api-version=2020-07-01' -H 'Metadata: true' | grep '"Preempt"'; }
    ;;
*)
    echo "unknown cloud: $1" >&2
    exit 2
    ;;
esac

until notice > /dev/null; do sleep 2; done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot machine taken back" \
    --deadline-remaining-seconds "$seconds"
