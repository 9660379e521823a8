"""Events of devices in the field, as `pipelines/telemetry.yaml` reads them: sent to a stream, and some to a bucket.

    load.py STREAM BUCKET EVENTS_A_SECOND

Ends when its standard input does. Event time goes a hundred times as fast as the clock, so that minutes close while one
looks on. Of the events, some break a rule, some are errors, and some are not JSON.
"""

import datetime
import json
import random
import select
import sys
import time

import boto3
from botocore.config import Config

# Name, latitude, longitude and the mean temperature of November.
SITES = [
    ("reno", 39.53, -119.81, 14), ("elko", 40.83, -115.76, 8), ("yuma", 32.69, -114.63, 41), ("bend", 44.06, -121.31, 6),
    ("boise", 43.62, -116.2, 9), ("provo", 40.23, -111.66, 10), ("taos", 36.41, -105.57, 7), ("fresno", 36.74, -119.79, 18),
    ("butte", 46.0, -112.53, 2), ("moab", 38.57, -109.55, 15), ("laredo", 27.51, -99.51, 24), ("salina", 38.84, -97.61, 12),
    ("fargo", 46.88, -96.79, 1), ("tulsa", 36.15, -95.99, 16), ("duluth", 46.79, -92.1, 0), ("macon", 32.84, -83.63, 19),
    ("erie", 42.13, -80.09, 9), ("bangor", 44.8, -68.77, 5), ("ocala", 29.19, -82.14, 25), ("gallup", 35.53, -108.74, 9),
]

DEVICES = 200
FASTER = 100
START = datetime.datetime(2026, 11, 1, 6, tzinfo=datetime.timezone.utc)

# What PutRecords takes in a call.
CALL_RECORDS_MAX = 500

# Every so many calls, what was sent is also uploaded, as by devices that were out of reach.
UPLOADED_CALLS = 40


def event(chance, number, second):
    device = number % DEVICES
    name, lat, lon, mean_c = SITES[device % len(SITES)]
    if chance.random() < 0.0005:
        return "<reading/>"
    temp_c = 850.0 if chance.random() < 0.002 else round(chance.gauss(mean_c, 3), 1)
    return json.dumps({
        "ts": (START + datetime.timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "device": f"{name}-{device // len(SITES)}",
        "site": name,
        "lat": round(lat + device // len(SITES) * 0.05, 4),
        "lon": round(lon + device // len(SITES) * 0.07, 4),
        "temp_c": temp_c,
        "humidity": round(chance.uniform(20, 60), 1),
        "pressure_hpa": round(chance.gauss(1013, 6), 1),
        "battery_v": round(chance.uniform(3.3, 4.1), 2),
        "firmware": "1.2.0",
        "status": "error" if chance.random() < 0.01 else "ok",
        "seq": number // DEVICES,
    })


def main():
    stream, bucket, rate = sys.argv[1], sys.argv[2], int(sys.argv[3])
    kinesis = boto3.client("kinesis", config=Config(read_timeout=120, retries={"max_attempts": 0}))
    s3 = boto3.client("s3")
    chance = random.Random(1)
    begun = time.monotonic()
    sent = calls = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        due = min(int((time.monotonic() - begun) * rate) - sent, CALL_RECORDS_MAX)
        if due < CALL_RECORDS_MAX // 2:
            time.sleep(0.01)
            continue
        events = [event(chance, sent + n, (sent + n) / rate * FASTER) for n in range(due)]
        records = [{"Data": text.encode(), "PartitionKey": str(n % 64)} for n, text in enumerate(events)]
        kinesis.put_records(StreamName=stream, Records=records)
        sent, calls = sent + due, calls + 1
        if calls % UPLOADED_CALLS == 0:
            s3.put_object(Bucket=bucket, Key=f"telemetry/{calls}.jsonl", Body="\n".join(events).encode())


main()
