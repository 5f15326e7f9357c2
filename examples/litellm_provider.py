"""litellm answers with the memory, in this process: one string changes.

    .venv/bin/python examples/litellm_provider.py

Takes base model and generator from the settings (`memory models pull` gets the base model) and
works on a database of its own, in a temporary folder.
"""

import tempfile
from pathlib import Path

import litellm
from pydantic import SecretStr

from memory_service.api.provider import litellm_provider
from memory_service.settings import read_settings
from memory_service.storage.migrate import upgrade


def main(database_url: str) -> None:
    """Tell it something, and ask for it in another session, where no history is sent."""
    settings = read_settings().model_copy(update={"database_url": SecretStr(database_url)})
    with litellm_provider(settings, print) as model:
        print(f"model: {model}")
        for session, text in (
            ("monday", "I just got back from walking my dog Biscuit."),
            ("tuesday", "What is my dog called?"),
        ):
            answer = litellm.completion(
                model=model,
                user="ana",
                messages=[{"role": "user", "content": text}],
                memory={"session": session},
                temperature=0,
                max_tokens=24,
            )
            print(f"\n{session}\nana: {text}\nassistant: {answer.choices[0].message.content}")
            print(f"({answer.usage.prompt_tokens} prompt tokens)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'memory.db'}"
        upgrade(url)
        main(url)
