"""Answers beside an event loop: three at once, one of them given up.

usage: side_by_side.py [FILE]
"""

import asyncio
import sys

from qtransformers import Model


async def tell(model: Model, about: str) -> str:
    text = ""
    async for chunk in await model.achat(
        [{"role": "user", "content": f"Tell me a story about {about}."}], stream=True, temperature=0
    ):
        text += chunk.text
    return text


async def main(model: Model) -> None:
    given_up = asyncio.create_task(tell(model, "a whale"))
    stories = asyncio.gather(tell(model, "a fox"), tell(model, "an owl"))
    await asyncio.sleep(0.05)
    given_up.cancel()  # its pages of the cache are free again
    for story in await stories:
        print(story)
    print(model.usage)


with Model.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    asyncio.run(main(model))
