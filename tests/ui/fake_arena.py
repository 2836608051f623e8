"""An arena without models, for the tests of its page: what it answers is known, or attacks."""

import time

import gradio as gr
from ui_world import ATTACKS, SECRET

from hf_align.arena import Answer, Contestant, Facts, Measures, Progress, Token
from hf_align.types import Estimate, InputError
from hf_align.ui.arena import Answering, play_on
from hf_align.ui.arena_page import Page
from hf_align.ui.arena_turns import open_votes
from hf_align.ui.visitors import Visitors

NAMES = ("lab/plain-7b", "lab/tuned-7b", "lab/gone-7b")
ATTACK = "\n\n".join(ATTACKS.values())
LIMIT = 32_768

CONTESTANTS = (
    Contestant("plain", NAMES[0], "reference", "a" * 40),
    Contestant(
        *("tuned", NAMES[1], "aligned", "b" * 40),
        facts=Facts(
            recipe="dpo",
            verdict="NOT DETECTED",
            verdict_text="gold rose by 0.97 [0.87, 1.07]",
            kl=Estimate(1.42, 1.39, 1.45, 520),
            win_rate=Estimate(0.74, 0.73, 0.76, 520),
            gold_gain=Estimate(-0.5, None, None, 520),
            link="https://huggingface.co/lab/tuned-7b",
            base="lab/plain-7b",
        ),
    ),
    Contestant("gone", NAMES[2], "aligned", problem="lab/gone-7b is not on the Hub, or private"),
)


class FakeArena:
    """Answers word by word: an echo of the prompt, and the same or an attack with more style."""

    def __init__(self, pause=0.0, contestants=CONTESTANTS):
        self.contestants, self.pause = contestants, pause
        self.running = self.ended = 0
        self.keys = None

    reward_problem = None

    def stream(self, prompt, sampling, stop=None, measures=False, keys=()):
        """Progress, the answers, and what is measured of them."""
        size = len(prompt.encode())
        if size > LIMIT:
            raise InputError(f"prompt: it has {size:,} bytes, and {LIMIT:,} is the limit")
        if prompt == "break":
            raise RuntimeError("out of memory, at /secret/path")
        if prompt == "quota":
            raise gr.Error(
                "You have exceeded your GPU quota (25s requested vs. 3s left). <b>Soon</b>"
            )
        words = self.words(prompt, sampling)
        self.running += 1
        self.keys = keys
        count = 0
        try:
            while count < min(max(map(len, words)), sampling.max_new_tokens):
                if stop is not None and stop.is_set():
                    break
                count += 1
                time.sleep(self.pause)
                texts = tuple("".join(own[:count]) for own in words)
                yield Progress(texts, tuple(count >= len(own) for own in words), count)
            cancelled = stop is not None and stop.is_set()
            answers = tuple(self.answer(own, count, cancelled, prompt) for own in words)
            yield answers
            yield self.measure(prompt, answers)
        finally:
            self.running -= 1
            self.ended += 1

    def words(self, prompt, sampling):
        """Every contestant's words."""
        said = [f"{word} " for word in prompt.split()]
        styled = ["Certainly! ", *said, f"please {sampling.seed}"]
        if prompt == "attack":
            styled = [f"{word} " for word in ATTACK.split(" ")]
        return [said, styled, []]

    def answer(self, words, count, cancelled, prompt):
        """A contestant's answer."""
        if not words:
            return Answer(problem=f"{NAMES[2]} is not on the Hub, or private")
        if prompt == "tuned fails" and words[0] == "Certainly! ":
            return Answer(problem=f"{NAMES[1]} does not know these words")
        own = words[:count]
        text = "".join(own)
        return Answer(text, tuple(range(len(own))), tuple(own), count >= len(words), cancelled)

    def measure(self, prompt, answers):
        """Every contestant's measures."""
        kinds = ("shifted", "unshifted", "marginal")
        measures = []
        for place, answer in enumerate(answers):
            tokens = tuple(
                Token(text, kinds[i % 3], (7, 1, 2)[i % 3], (2.5, 0.0, -0.25)[i % 3])
                for i, text in enumerate(answer.tokens)
            )
            if place == 0:
                measures.append(Measures(len(answer.tokens), score=0.5))
            else:
                measures.append(Measures(len(answer.tokens), 3.25, 0.325, 0.1, -1.5, tokens))
        return tuple(measures)


def make_answering(folder, arena=None, **settings):
    """The page's handlers with a store of votes in a folder."""
    votes = open_votes(folder, SECRET, needs_name=settings.pop("needs_name", False))
    arena = arena or FakeArena()
    play = settings.pop("play", play_on(arena))
    return Answering(arena, Visitors(SECRET), Page(), votes, play, **settings)
