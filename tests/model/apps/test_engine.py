"""The decoder's thread: everyone is told, in order, what becomes of a prompt, whatever happens to the others."""

import queue

import pytest

from model.apps.engine import Engine, Job, News, QueueFull
from model.samplers.block_loop import BlockDecoder
from model.samplers.policies import Threshold
from model.samplers.sampling import Sampling
from tests.model.samplers.test_block_loop import network


class Asker:
    """Hands in prompts and keeps what it is told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def ask(self, prompt: list[int], tokens: int) -> tuple[Job, "queue.Queue[News]"]:
        told: queue.Queue[News] = queue.Queue()
        job = Job(prompt, tokens, Sampling(), told.put)
        self.engine.submit(job)
        return job, told


def last(told: "queue.Queue[News]") -> tuple[News, list[News]]:
    news = []
    while not news or (news[-1].decoded is None and news[-1].error is None):
        news.append(told.get(timeout=60))
    return news[-1], news


@pytest.fixture
def decoder() -> BlockDecoder:
    net = network()
    net.unembedding.weight.data[1] = 0  # no EOS
    return BlockDecoder(net, Threshold(0.2), batch_rows=2)


def test_blocks_are_told_as_they_settle_and_the_last_news_is_the_answer(decoder: BlockDecoder) -> None:
    engine = Engine(decoder, 64, 8)
    _, told = Asker(engine).ask([2, 3, 4], 30)
    end, news = last(told)
    assert end.decoded.tokens == decoder([[2, 3, 4]], 30)[0].tokens
    assert len(news) == 5 and all(one.tokens == end.tokens[: len(one.tokens)] for one in news)
    engine.close()
    engine.join(60)
    assert not engine.is_running and engine.figures.answer_tokens == 30


def test_closing_answers_what_waits_and_cancelling_frees_the_place(decoder: BlockDecoder) -> None:
    engine = Engine(decoder, 64, 3)
    asker = Asker(engine)
    first = [asker.ask([2, 3], 40) for _ in range(2)]
    while engine.num_live < 2:
        pass
    waiting = [asker.ask([5, 6, number], 20) for number in (7, 8, 9)]
    with pytest.raises(QueueFull):
        asker.ask([2], 1)
    engine.cancel(waiting[1][0])
    engine.cancel(first[0][0])
    engine.close()
    ends = [last(told)[0] for _, told in first + waiting]
    assert [end.decoded.cancelled for end in ends] == [True, False, False, True, False]
    assert ends[4].tokens == decoder([[5, 6, 9]], 20)[0].tokens and ends[3].tokens == []


def test_an_error_ends_the_rows_it_meets_and_the_next_prompt_is_answered(decoder: BlockDecoder, monkeypatch) -> None:
    engine, step, calls = Engine(decoder, 64, 8), decoder.step, []

    def failing(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return step(batch)

    monkeypatch.setattr(decoder, "step", failing)
    asker = Asker(engine)
    _, told = asker.ask([2, 3, 4], 30)
    assert str(last(told)[0].error) == "out of memory"
    _, told = asker.ask([2, 3, 4], 30)
    assert len(last(told)[0].tokens) == 30 and engine.figures.errors == 1


def test_what_cannot_be_decoded_is_refused_before_it_waits(decoder: BlockDecoder) -> None:
    engine = Engine(decoder, 64, 8)
    with pytest.raises(ValueError, match="mask token"):
        Asker(engine).ask([2, 30], 5)
    assert engine.num_waiting == engine.num_live == 0
