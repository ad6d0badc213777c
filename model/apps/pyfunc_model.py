"""A registered model as MLflow loads it, from this code and a checkpoint folder; nothing is pickled.

`mlflow.pyfunc.load_model("models:/unmask-target@champion").predict(DataFrame({"prompt": ["..."]}))` -> one answer a row.
"""

import json
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


def conversations_of(model_input: Any) -> list[list[dict[str, str]]]:
    """Turns from a table: column `prompt` (one user message) or `messages` (turns, or the same as JSON text)."""
    if "messages" in model_input:
        rows = list(model_input["messages"])
        return [json.loads(row) if isinstance(row, str) else [dict(turn) for turn in row] for row in rows]
    if "prompt" in model_input:
        return [[{"role": "user", "content": str(prompt)}] for prompt in model_input["prompt"]]
    raise ValueError(f"the input needs a column `prompt` or `messages`; it has {', '.join(map(str, model_input))}")


class ChatModel(PythonModel):  # type: ignore[misc]
    """Answers conversations with the checkpoint that was registered."""

    def load_context(self, context: Any) -> None:
        from model.apps.answer import load_answerer

        self.answer = load_answerer(Path(context.artifacts["checkpoint"]))

    # Without type hints: MLflow would take them for a schema and drop `params`.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return self.answer(conversations_of(model_input))


set_model(ChatModel())
