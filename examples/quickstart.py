"""Remember three turns, ask about them, print the answer.

    .venv/bin/python examples/quickstart.py

Takes base model and generator from the settings (`memory models pull` gets the base model) and
works on a database of its own, in a temporary folder.
"""

import asyncio
import tempfile
from pathlib import Path

from pydantic import SecretStr

from memory_service.bootstrap import open_service
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.domain.turns import new_turn
from memory_service.settings import read_settings
from memory_service.storage.migrate import upgrade

ANA = MemoryId("ana")


async def main(database_url: str) -> None:
    """Append, ask, print."""
    settings = read_settings().model_copy(update={"database_url": SecretStr(database_url)})
    async with open_service(settings, report=print) as service:
        appended = await service.remember.append(
            ANA,
            [
                new_turn("I just got back from walking my dog Biscuit."),
                new_turn("What kind of dog is he?", role="assistant"),
                new_turn("He's a beagle. I work as a barista, so mornings are early."),
            ],
        )
        print(f"remembered {appended.new} turns as {ANA.user}@{appended.version}")

        question = "What is my dog called?"
        print(f"\n{question}")
        async for piece in service.chat.answer(
            ANA, [Message("user", question)], Sampling(max_new_tokens=24)
        ):
            if isinstance(piece, Generation):
                print(f"\n({piece.prompt_tokens} prompt tokens: the turns are not among them)")
            else:
                print(piece, end="", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'memory.db'}"
        upgrade(url)
        asyncio.run(main(url))
