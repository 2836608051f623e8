"""Threads that write at once share a commit: nobody is told before it, each keeps to its own."""

import sqlite3
import threading
from pathlib import Path

import pytest

from hf_align.feedback import Store
from hf_align.feedback.group_commit import Writer


class Slow(sqlite3.Connection):
    """A disk that takes its time, and counts; `broken` makes its commits fail."""

    commits, begins, broken = 0, 0, False
    gate: threading.Event

    def execute(self, statement, *rest):
        if statement == "BEGIN IMMEDIATE":
            self.begins += 1
        if statement == "COMMIT":
            self.commits += 1
            if self.broken:
                raise sqlite3.OperationalError("database or disk is full")
            self.gate.wait(5)
        return super().execute(statement, *rest)


@pytest.fixture
def slow(disk):
    """A connection to a table of words, and its writer."""
    connection = sqlite3.connect(
        disk / "w.db", isolation_level=None, check_same_thread=False, factory=Slow
    )
    connection.gate = threading.Event()
    connection.gate.set()
    connection.execute("CREATE TABLE words (word TEXT)")
    yield connection
    connection.close()


def words(path: Path):
    """What another connection sees, sorted."""
    with sqlite3.connect(path) as other:
        return sorted(row[0] for row in other.execute("SELECT word FROM words"))


def run(jobs):
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    return threads


def test_those_who_come_during_a_commit_share_the_next(slow, disk):
    writer, told = Writer(lambda: slow), []

    def write(word):
        with writer.transaction() as connection:
            connection.execute("INSERT INTO words VALUES (?)", (word,))
        told.append(word)
        assert word in words(disk / "w.db")  # on the disk before anyone is told

    slow.gate.clear()
    first = run([lambda: write("first")])
    while slow.commits == 0:
        pass
    rest = run([lambda n=n: write(f"w{n}") for n in range(12)])
    while writer._waiting < 12:
        pass
    assert not told
    slow.gate.set()
    for thread in first + rest:
        thread.join(10)
    assert sorted(told) == words(disk / "w.db") and len(told) == 13
    assert slow.commits == slow.begins == 2


def test_what_one_takes_back_leaves_the_others_work_alone(slow, disk):
    writer, failed = Writer(lambda: slow), []

    def write(number):
        try:
            with writer.transaction() as connection:
                connection.execute("INSERT INTO words VALUES (?)", (f"w{number:02}",))
                if number % 3 == 0:
                    raise KeyError(number)
        except KeyError as error:
            failed.append(error.args[0])

    for thread in run([lambda n=n: write(n) for n in range(24)]):
        thread.join(10)
    assert sorted(failed) == list(range(0, 24, 3))
    assert words(disk / "w.db") == [f"w{n:02}" for n in range(24) if n % 3]
    assert not slow.in_transaction


def test_a_commit_that_fails_is_an_error_for_all_who_shared_it(slow, disk):
    writer, failed = Writer(lambda: slow), []

    def write(number):
        try:
            with writer.transaction() as connection:
                connection.execute("INSERT INTO words VALUES (?)", (f"w{number}",))
        except sqlite3.OperationalError as error:
            failed.append(str(error))

    slow.broken = True
    for thread in run([lambda n=n: write(n) for n in range(9)]):
        thread.join(10)
    assert failed == ["database or disk is full"] * 9 and words(disk / "w.db") == []
    slow.broken = False
    write(9)
    assert words(disk / "w.db") == ["w9"]


def test_where_sqlite_gives_a_transaction_up_nobody_is_told_that_it_is_stored(slow, disk):
    writer, failed = Writer(lambda: slow), []
    inside, leave = threading.Event(), threading.Event()

    def first():
        try:
            with writer.transaction() as connection:
                connection.execute("INSERT INTO words VALUES ('first')")
                inside.set()
                leave.wait(5)
        except sqlite3.OperationalError:
            failed.append("first")

    def second():
        try:
            with writer.transaction() as connection:
                connection.execute("ROLLBACK")  # as SQLite does where the disk is full
                raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError:
            failed.append("second")

    one = run([first])
    inside.wait(5)
    two = run([second])
    while writer._waiting < 1:
        pass
    leave.set()
    for thread in one + two:
        thread.join(10)
    assert sorted(failed) == ["first", "second"] and words(disk / "w.db") == []


def test_a_store_that_is_closed_tells_everyone(disk):
    store, failed, started = Store(disk / "c.db"), [], threading.Barrier(9)

    def write(number):
        started.wait()
        try:
            for turn in range(50):
                with store.write() as transaction:
                    transaction.append(f"e{number}-{turn}", "note", "p", {})
        except OSError as error:
            failed.append(str(error))

    threads = run([lambda n=n: write(n) for n in range(8)])
    started.wait()
    store.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert all("is closed" in line for line in failed)
    stored = [event["event_id"] for event in Store(disk / "c.db").events()]
    assert len(stored) == len(set(stored)) and (failed or len(stored) == 400)


@pytest.mark.parametrize("fault", ["commit interrupted", "rollback fails"])
def test_nobody_is_told_of_a_commit_that_did_not_happen(slow, fault):
    writer, inside, told = Writer(lambda: slow), threading.Event(), []

    def breaks(statement, *rest):
        if statement == "COMMIT":
            interrupted = fault == "commit interrupted"
            raise KeyboardInterrupt if interrupted else sqlite3.OperationalError("disk I/O error")
        if statement == "ROLLBACK" and fault == "rollback fails":
            raise sqlite3.OperationalError("disk I/O error")
        return Slow.execute(slow, statement, *rest)

    def write(word):
        try:
            with writer.transaction() as connection:
                connection.execute("INSERT INTO words VALUES (?)", (word,))
                inside.set()
                while word == "first" and not writer._waiting:
                    pass
            told.append("stored")
        except BaseException as error:
            told.append(type(error))

    slow.execute = breaks
    threads = run([lambda: write("first")])
    assert inside.wait(5)
    threads += run([lambda: write("second")])
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert len(told) == 2 and "stored" not in told
