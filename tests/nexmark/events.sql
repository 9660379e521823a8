-- The events of Nexmark (https://github.com/nexmark/nexmark): of 50, one is a person, three are auctions, the others are
-- bids; ten thousand a second, up to 0.2 s out of order. Bids are on auctions of the last seconds, most of them on few.
CREATE MACRO pick(n, salt, below) AS (hash(n * 64 + salt) % below)::BIGINT;
CREATE TABLE event AS
SELECT n, n // 50 AS round, n % 50 AS part,
       TIMESTAMPTZ '2026-11-01 00:00:00+00' + to_microseconds(n * 100 + pick(n, 1, 200000)) AS date_time
FROM range($events) events(n);

CREATE TABLE person AS
SELECT round AS id,
       ['Peter', 'Paul', 'Luke', 'John', 'Saul', 'Vicky', 'Kate', 'Julie', 'Sarah', 'Deiter'][1 + pick(n, 2, 10)]
           || ' ' || ['Shultz', 'Abrams', 'Spencer', 'White', 'Bartels', 'Walton', 'Smith', 'Jones'][1 + pick(n, 3, 8)] AS name,
       'user' || round || '@example.com' AS email,
       ['Phoenix', 'Los Angeles', 'San Francisco', 'Boise', 'Portland', 'Bend', 'Redmond', 'Seattle'][1 + pick(n, 4, 8)] AS city,
       ['AZ', 'CA', 'ID', 'OR', 'WA', 'WY'][1 + pick(n, 5, 6)] AS state,
       date_time
FROM event WHERE part = 0;

CREATE TABLE auction AS
SELECT round * 3 + part - 1 AS id, 'item ' || n AS item_name, pick(n, 6, 1000) AS initial_bid, date_time,
       date_time + to_milliseconds(1000 + pick(n, 7, 15000)) AS expires,
       greatest(0, round - pick(n, 8, 500)) AS seller, 10 + pick(n, 9, 5) AS category
FROM event WHERE part BETWEEN 1 AND 3;

CREATE TABLE bid AS
SELECT greatest(0, round * 3 - CASE WHEN pick(n, 10, 2) = 0 THEN pick(n, 11, 3000) ELSE (round * 3) % 100 END) AS auction,
       greatest(0, round - pick(n, 12, 1000)) AS bidder,
       CAST(pow(10, pick(n, 13, 6000) / 1000.0) * 100 AS BIGINT) AS price,
       ['Google', 'Facebook', 'Baidu', 'Apple', 'channel-' || pick(n, 14, 10000)][1 + pick(n, 15, 5)] AS channel,
       'https://www.nexmark.com/' || md5((pick(n, 16, 500))::VARCHAR)[1:6] || '/' || md5((pick(n, 17, 50))::VARCHAR)[1:5]
           || '/item.htm?query=1' || CASE WHEN pick(n, 18, 3) > 0 THEN '&channel_id=' || pick(n, 19, 1000000) ELSE '' END AS url,
       date_time, md5(n::VARCHAR) AS extra
FROM event WHERE part > 3;

CREATE TABLE side_input AS SELECT key, 'value ' || key AS value FROM range(100) side(key);
