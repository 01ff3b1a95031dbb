"""Publishes or consumes so many messages and prints how many that was in a second.

Run by the bench of messaging: `python aio_pika.py publish|consume URL QUEUE COUNT AT_A_TIME`.
"""
import asyncio
import json
import sys
import time
import uuid

import aio_pika

BODY = json.dumps({"note": "x" * 1000}).encode()


async def publish(channel, count, tasks):
    exchange = await channel.get_exchange("orders.events", ensure=False)

    async def each(count):
        for _ in range(count):
            message = aio_pika.Message(
                BODY,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=str(uuid.uuid4()),
                type="order.placed.v1",
            )
            # Resolves with the broker's confirm.
            await exchange.publish(message, "order.placed.v1", mandatory=True)

    await asyncio.gather(*(each(count // tasks) for _ in range(tasks)))


async def consume(channel, queue, count, prefetch):
    await channel.set_qos(prefetch_count=prefetch)
    queue = await channel.get_queue(queue, ensure=False)
    done = asyncio.Event()
    left = count

    async def handle(message):
        nonlocal left
        json.loads(message.body)
        await message.ack()
        left -= 1
        if left == 0:
            done.set()

    tag = await queue.consume(handle)
    await done.wait()
    await queue.cancel(tag)


async def main(what, url, queue, count, at_a_time):
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        started = time.perf_counter()
        if what == "publish":
            await publish(channel, count, at_a_time)
        else:
            await consume(channel, queue, count, at_a_time)
        print(count / (time.perf_counter() - started))


what, url, queue, count, at_a_time = sys.argv[1:]
asyncio.run(main(what, url, queue, int(count), int(at_a_time)))
