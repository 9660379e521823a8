-- What each query gives as a batch, as Nexmark states it: where the pipeline needs a bound of time, there is none here.
-- q0
SELECT auction, bidder, price, date_time, extra FROM bid
-- q1
SELECT auction, bidder, 0.908::DOUBLE * price AS price, date_time, extra FROM bid
-- q2
SELECT auction, price FROM bid WHERE auction % 123 = 0
-- q3
SELECT p.name, p.city, p.state, a.id, a.date_time FROM auction a JOIN person p ON a.seller = p.id
WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')
-- q4
SELECT category, avg(final) AS mean FROM (
    SELECT a.id, a.category, max(b.price) AS final FROM auction a JOIN bid b ON a.id = b.auction
    WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY 1, 2)
GROUP BY 1
-- q5
WITH hopped AS (
    SELECT time_bucket(INTERVAL '2 seconds', date_time) - to_seconds(2 * hops) AS start, auction, count(*) AS bids
    FROM bid, range(5) hops(hops) GROUP BY 1, 2)
SELECT start, auction, bids FROM hopped QUALIFY bids = max(bids) OVER (PARTITION BY start)
-- q7
SELECT auction, bidder, price, date_time, extra FROM bid
QUALIFY price = max(price) OVER (PARTITION BY time_bucket(INTERVAL '10 seconds', date_time))
-- q8
SELECT DISTINCT p.id, p.name, time_bucket(INTERVAL '10 seconds', p.date_time) AS start
FROM person p JOIN auction a ON p.id = a.seller
    AND time_bucket(INTERVAL '10 seconds', p.date_time) = time_bucket(INTERVAL '10 seconds', a.date_time)
-- q9
SELECT a.id, b.price, b.bidder FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
QUALIFY row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder) = 1
-- q11
WITH marked AS (
    SELECT bidder, date_time,
        coalesce(date_time - lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) >= INTERVAL '2 seconds', true) AS first
    FROM bid),
numbered AS (SELECT *, sum(first::INT) OVER (PARTITION BY bidder ORDER BY date_time) AS session FROM marked)
SELECT min(date_time) AS start, bidder, count(*) AS bids, max(date_time) AS last FROM numbered GROUP BY bidder, session
-- q13
SELECT b.auction, b.bidder, b.price, b.date_time, s.value FROM bid b JOIN side_input s ON b.auction % 100 = s.key
-- q14
SELECT auction, bidder, 0.908::DOUBLE * price AS price,
    CASE
        WHEN hour(date_time) BETWEEN 8 AND 18 THEN 'dayTime'
        WHEN hour(date_time) <= 6 OR hour(date_time) >= 20 THEN 'nightTime'
        ELSE 'otherTime'
    END AS bid_time_type,
    date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000
-- q15
SELECT date_trunc('day', date_time) AS day, count(*) AS bids,
    count(*) FILTER (WHERE price < 10000) AS bids_1,
    count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS bids_2,
    count(*) FILTER (WHERE price >= 1000000) AS bids_3,
    count(DISTINCT bidder) AS bidders, count(DISTINCT bidder) FILTER (WHERE price < 10000) AS bidders_1,
    count(DISTINCT auction) AS auctions, count(DISTINCT auction) FILTER (WHERE price >= 1000000) AS auctions_3
FROM bid GROUP BY 1
-- q16
SELECT channel, date_trunc('day', date_time) AS day, max(date_trunc('minute', date_time)) AS minute, count(*) AS bids,
    count(*) FILTER (WHERE price < 10000) AS bids_1, count(DISTINCT bidder) AS bidders,
    count(DISTINCT auction) FILTER (WHERE price >= 1000000) AS auctions_3
FROM bid GROUP BY 1, 2
-- q17
SELECT auction, date_trunc('day', date_time) AS day, count(*) AS bids,
    count(*) FILTER (WHERE price < 10000) AS bids_1,
    count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS bids_2,
    count(*) FILTER (WHERE price >= 1000000) AS bids_3,
    min(price) AS least, max(price) AS most, avg(price) AS mean, sum(price) AS sum
FROM bid GROUP BY 1, 2
-- q18
SELECT bidder, auction, date_time, price FROM bid
QUALIFY row_number() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, price DESC) = 1
-- q19
SELECT auction, list(price ORDER BY price DESC)[1:10] AS highest FROM bid GROUP BY 1
-- q20
SELECT b.auction, b.bidder, b.price, b.channel, b.date_time, a.item_name, a.seller, a.category
FROM bid b JOIN auction a ON b.auction = a.id WHERE a.category = 10
-- q21
SELECT auction, bidder, price, channel,
    CASE lower(channel)
        WHEN 'apple' THEN '0' WHEN 'google' THEN '1' WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
        ELSE nullif(regexp_extract(url, '(&|^)channel_id=([^&]*)', 2), '')
    END AS channel_id
FROM bid WHERE regexp_matches(url, '(&|^)channel_id=([^&]*)') OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu')
-- q22
SELECT auction, bidder, price, channel, split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2,
    split_part(url, '/', 6) AS dir3
FROM bid
