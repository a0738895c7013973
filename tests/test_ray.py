"""Extraction on a Ray cluster: what is dealt to whom, one worker by itself, and a real cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import extraction as ex
import pytest
from media import write_clip
from ray_backbone import BATCH_SECONDS
from vis4mer.extract import request
from vis4mer.extract.engines import crew as crew_module
from vis4mer.extract.engines.actor import Actor, Begun, Post, Report, Trouble
from vis4mer.extract.engines.base import EngineOptions, engine_named
from vis4mer.extract.engines.cluster import CLIENT_TRIES, joined_cluster
from vis4mer.extract.engines.crew import Crew
from vis4mer.extract.engines.dealing import MAX_DEATHS, MOST_AT_ONCE, Dealer
from vis4mer.extract.engines.deaths import let_go
from vis4mer.extract.engines.places import Need, Place, need_of
from vis4mer.extract.request import ExtractRequest
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.feeding import Feed, Receipt
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache, open_cache
from vis4mer.store.claims import Claims, list_claims
from vis4mer.store.errors import UsageError, Vis4merError
from vis4mer.store.verify import verify_cache
from vis4mer.store.workers import Worker, list_workers, read_worker

NODE = {"CPU": 8.0, "GPU": 2.0}


def sources(count: int) -> list[VideoSource]:
    return [VideoSource(id=f"{i}", path=Path(f"/v/{i}"), name=f"{i}") for i in range(count)]


def ids(videos) -> list[str]:
    return [video.id for video in videos]


def extracted(video_id: str) -> Receipt:
    return Receipt(id=video_id, outcome="extracted")


# Dealing -------------------------------------------------------------------------------------


def test_videos_are_dealt_in_order_and_fewer_towards_the_end():
    dealer = Dealer(sources(1000))
    sizes, dealt = [], []
    while dealer.num_to_deal:
        for worker in ("a", "b"):
            videos = dealer.deal(worker, num_waiting=0, threads=3, workers=2)
            dealt += ids(videos)
            sizes.append(len(videos))
            for video in videos:
                assert dealer.end(worker, extracted(video.id))
    assert dealt == ids(sources(1000))
    assert sizes[0] == MOST_AT_ONCE
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-3] == 3  # enough for every thread, until nothing is left
    assert dealer.num_in_hand == 0


def test_what_waits_at_a_worker_is_counted():
    dealer = Dealer(sources(10))
    assert len(dealer.deal("a", num_waiting=0, threads=4, workers=1)) == 4
    assert len(dealer.deal("a", num_waiting=3, threads=4, workers=1)) == 1
    assert dealer.deal("a", num_waiting=9, threads=4, workers=1) == []


def test_the_hand_of_a_dead_worker_is_dealt_next_and_in_order():
    dealer = Dealer(sources(9))
    dealer.deal("a", num_waiting=0, threads=4, workers=2)
    dealer.deal("b", num_waiting=0, threads=2, workers=2)
    dealer.end("a", extracted("1"))
    assert dealer.bury("a") == []
    assert not dealer.end("a", extracted("0"))  # a late word of the dead
    assert ids(dealer.deal("c", num_waiting=0, threads=9, workers=1)) == list("023678")
    assert dealer.num_in_hand == 8


def test_a_video_that_many_workers_died_with_is_given_up():
    dealer = Dealer(sources(3), limit=3)
    for death in range(1, MAX_DEATHS + 1):
        for video_id in ids(dealer.deal(death, num_waiting=0, threads=3, workers=1)):
            if video_id != "1":
                dealer.end(death, extracted(video_id))
        given_up = dealer.bury(death)
    assert ids(given_up) == ["1"]
    assert dealer.num_to_deal == dealer.num_in_hand == 0


def deal_until(dealer: Dealer, poison: str) -> tuple[list[str], list[str], int]:
    """One worker after the other, which begins with the first of its hand and dies at `poison`:
    what was done, what was given up, and how many have died."""
    done: list[str] = []
    given_up: list[str] = []
    worker = 0
    while dealer.num_to_deal or dealer.num_in_hand:
        videos = dealer.deal(worker, num_waiting=0, threads=2, workers=1)
        hand = dealer.hand(worker)
        assert videos or hand, "it waits for nothing"
        if hand[0] == poison:
            given_up += ids(dealer.bury(worker))
            worker += 1
        else:
            dealer.end(worker, extracted(hand[0]))
            done.append(hand[0])
    return done, given_up, worker


def test_a_video_that_kills_workers_takes_no_other_with_it():
    done, given_up, deaths = deal_until(Dealer(sources(500)), "0")
    assert (given_up, deaths) == (["0"], MAX_DEATHS)
    assert sorted(done, key=int) == ids(sources(500)[1:])


def test_a_suspect_is_dealt_to_an_empty_hand_and_nothing_is_added_to_it():
    dealer = Dealer(sources(4))
    for worker in ("a", "b"):
        assert len(dealer.deal(worker, num_waiting=0, threads=2, workers=1)) == 2
        assert not dealer.keeps_apart(worker)
        assert dealer.bury(worker) == []
    dealer.end("c", extracted("-"))
    assert dealer.keeps_apart("c")
    assert ids(dealer.deal("c", num_waiting=0, threads=2, workers=1)) == ["0"]
    assert dealer.deal("c", num_waiting=0, threads=2, workers=1) == []
    assert ids(dealer.deal("d", num_waiting=0, threads=2, workers=1)) == ["1"]
    assert ids(dealer.deal("e", num_waiting=0, threads=2, workers=1)) == ["2", "3"]
    dealer.end("c", extracted("0"))
    assert not dealer.keeps_apart("c")
    # Behind others again, it is not dealt beside them either.
    dealer = Dealer(sources(5))
    for worker in ("a", "b"):
        dealer.deal(worker, num_waiting=0, threads=1, workers=1)
        dealer.bury(worker)
    dealer.deal("c", num_waiting=0, threads=1, workers=1)
    dealer.deal("d", num_waiting=0, threads=2, workers=1)
    dealer.take_back("c")
    dealer.take_back("d")
    assert ids(dealer.deal("e", num_waiting=0, threads=5, workers=1)) == ["1", "2"]


def test_a_limit_is_of_attempts():
    dealer = Dealer(sources(10), limit=3)
    assert ids(dealer.deal("a", num_waiting=0, threads=8, workers=1)) == ["0", "1", "2"]
    assert dealer.num_to_deal == 0
    dealer.end("a", Receipt(id="0", outcome="already there"))
    assert dealer.num_to_deal == 1
    dealer.end("a", extracted("1"))
    dealer.end("a", Receipt(id="2", outcome="failed"))
    assert ids(dealer.deal("a", num_waiting=0, threads=8, workers=1)) == ["3"]
    dealer.end("a", extracted("3"))
    assert dealer.num_to_deal == 0


# Room ----------------------------------------------------------------------------------------


SMALL = {"node:10.0.0.1": 1.0, "node:__internal_head__": 1.0, "CPU": 8.0, "GPU": 2.0}
LARGE = {"node:10.0.0.2": 1.0, "CPU": 64.0, "GPU": 1.0}


def on(node: str, cores: float, gpus: int = 1) -> Place:
    return Place(gpus=gpus, cores=cores, machine=node and f"node:10.0.0.{node}")


@pytest.mark.parametrize(
    ("nodes", "options", "places"),
    [
        ([NODE, NODE], {}, {on("", 4): 4}),
        ([NODE, {"CPU": 64.0}], {}, {on("", 4): 2}),
        ([SMALL, LARGE], {}, {on("1", 4): 2, on("2", 64): 1}),
        ([{"CPU": 2.0, "GPU": 4.0}], {}, {on("", 0.5): 4}),
        ([{"CPU": 0.0, "GPU": 4.0}], {}, {}),
        ([NODE, NODE], {"workers": 3}, {on("", 3): 4}),
        ([SMALL, LARGE], {"workers": 16}, {on("1", 4): 2, on("2", 16): 1}),
        ([SMALL, LARGE], {"processes": 2}, {on("1", 4): 2, on("2", 64): 1}),
        ([SMALL, LARGE], {"processes": 5}, {on("1", 4): 2, on("2", 64): 1, on("", 4): 2}),
        ([SMALL], {"device": "cpu"}, {on("1", 8, 0): 1}),
        ([SMALL, LARGE], {"device": "cpu"}, {on("1", 8, 0): 1, on("2", 64, 0): 1}),
        ([{"CPU": 8.0}, {"CPU": 8.0}], {"processes": 3}, {on("", 4, 0): 3}),
        ([{"CPU": 2.0}], {"processes": 4}, {on("", 0.5, 0): 4}),
        ([{"memory": 1.0}], {}, {}),
        ([{"CPU": 8.0}], {"device": "cuda"}, {}),
    ],
)
def test_where_workers_are_to_be(nodes, options, places):
    need = need_of(nodes, **{"device": "auto", "processes": None, "workers": None, **options})
    assert need.places(nodes) == places


def test_a_machine_that_joins_has_room_for_more():
    need = need_of([NODE], device="auto", processes=None, workers=None)
    assert [need.places([NODE] * n).total() for n in (0, 1, 3)] == [0, 2, 6]
    # Also one with fewer cores for a GPU than those before it.
    assert need.places([NODE, {"CPU": 1.0, "GPU": 1.0}])[on("", 1)] == 1


def test_what_ray_is_asked_for():
    pinned = {"node:10.0.0.1": 0.001}
    assert on("1", 4).options == {"num_gpus": 1, "num_cpus": 4, "resources": pinned}
    assert on("", 0.5, 0).options == {"num_gpus": 0, "num_cpus": 0.5, "resources": {}}


@pytest.mark.parametrize("address", ["nowhere", "http://host:1", "host:port", "ray://", "h:99999"])
def test_an_address_that_is_none(address):
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="expected auto, local"), joined_cluster(address):
        pass


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[ray\]'"), joined_cluster("local"):
        pass


class MadeUpError(Exception):
    """As Ray's own."""


class RefusingRay:
    """`init` ends with these errors, one after the other, then well."""

    def __init__(self, *errors: Exception) -> None:
        self.exceptions = type("exceptions", (), {"RayError": MadeUpError})
        self.errors = list(errors)
        self.joined = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **_) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.joined = True

    def shutdown(self) -> None:
        self.joined = False


HUNG = ConnectionError(
    "Initialization failure from server:\nTraceback (most recent call last):\n  File x\n"
    "RuntimeError: Starting Ray client server failed.\n"
)


def test_a_client_server_that_hangs_is_asked_again(monkeypatch):
    ray = RefusingRay(*[HUNG] * (CLIENT_TRIES - 1))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with joined_cluster("local") as joined:
        assert joined.joined
    assert not ray.joined
    ray.errors += [HUNG] * CLIENT_TRIES
    with (
        pytest.raises(
            UsageError, match=r"joined \(RuntimeError: Starting Ray client server failed"
        ),
        joined_cluster("local"),
    ):
        pass
    assert not ray.errors


@pytest.mark.parametrize("error", [ConnectionError("timeout"), MadeUpError("wrong token")])
def test_a_cluster_that_may_ask_for_a_token(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "ray", RefusingRay(error, error))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(UsageError, match="RAY_AUTH_MODE=token before"), joined_cluster("auto"):
        pass
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with (
        pytest.raises(UsageError, match=r"\((timeout|wrong token)\).*local$"),
        joined_cluster("auto"),
    ):
        pass


def test_options_that_have_no_meaning_on_a_cluster(tmp_path):
    run = engine_named("ray")
    asked = ExtractRequest(inputs=[str(tmp_path)], cache=tmp_path / "c.zarr")
    with pytest.raises(UsageError, match="--devices"):
        run(asked, options=EngineOptions(devices=("cuda:0",)))
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        run(replace(asked, device="cuda:1"), options=EngineOptions())


# One worker, without a cluster ---------------------------------------------------------------


@pytest.fixture
def post(tmp_path, monkeypatch) -> Post:
    """Of a worker that reads tiny text files (`extraction`)."""
    monkeypatch.setattr(request, "_load", lambda *_, **__: ex.grey_backbone())
    monkeypatch.setattr(request, "get_reader", lambda _: ex.FakeReader())
    for i in range(5):
        ex.write_video(tmp_path / "videos", f"{i}", 7, start=i)
    mark = tmp_path / ".mark"
    mark.touch()
    asked = ExtractRequest(cache=tmp_path / "c.zarr", weights="random:0", batch_size=4)
    return Post(asked=asked, cores=2, mark=mark, folders=(tmp_path / "videos",))


def exchange_until_idle(actor: Actor, *videos: VideoSource, **options) -> list[Receipt]:
    report = actor.exchange(videos, close=True, **options)
    receipts = list(report.receipts)
    while not report.idle:
        report = actor.exchange(close=True)
        receipts += report.receipts
    assert report.trouble is None
    return receipts


def test_a_worker_takes_videos_and_gives_receipts(post, tmp_path):
    videos = ex.videos(tmp_path / "videos")
    ex.write_video(tmp_path / "videos", "broken", 20, open="told to")
    broken = ex.videos(tmp_path / "videos")[-1]
    actor = Actor(post)
    begun = actor.begin()
    assert begun.trouble is None
    assert begun.process.pid == os.getpid()
    assert begun.threads == {"reading": 2, "backbone": 2, "writing": 1}
    assert actor.exchange().idle
    receipts = exchange_until_idle(actor, *videos[:3], broken)
    assert sorted(r.id for r in receipts if r.outcome == "extracted") == ids(videos[:3])
    (failed,) = [receipt for receipt in receipts if receipt.outcome == "failed"]
    assert (failed.id, failed.failure.reason) == ("broken.mp4", "told to")
    # After it has brought everything to its end it may be given more.
    again = exchange_until_idle(actor, *videos[2:])
    outcomes = {receipt.id: receipt.outcome for receipt in again}
    assert outcomes == {
        "2.mp4": "already there",
        "3.mp4": "extracted",
        "4.mp4": "extracted",
    }
    assert actor.exchange().frames == 5 * 7
    for i in range(5):
        ex.assert_entry(open_cache(tmp_path / "c.zarr"), f"{i}.mp4", 7, start=i)
    assert not list(list_claims(tmp_path / "c.zarr"))


def test_a_stopped_worker_leaves_the_rest_undone(post, tmp_path):
    actor = Actor(post)
    actor.begin()
    report = actor.exchange(ex.videos(tmp_path / "videos")[:1], wait_seconds=0)
    receipts = list(report.receipts)
    while not report.idle:
        report = actor.exchange(ex.videos(tmp_path / "videos")[1:], close=True, stop=True)
        receipts += report.receipts
    assert report.trouble is None
    assert {receipt.id for receipt in receipts} == set(open_cache(tmp_path / "c.zarr").ids())


@pytest.mark.parametrize("where", ["writing.WritingStage.run", "pipeline.fill_cache"])
def test_a_worker_says_what_ends_its_work(post, tmp_path, monkeypatch, where):
    def refuse(*_, **__):
        raise Vis4merError("the disk is full")

    monkeypatch.setattr(f"vis4mer.extract.stages.{where}", refuse)
    actor = Actor(post)
    actor.begin()
    report = actor.exchange(ex.videos(tmp_path / "videos"), close=True)
    while not report.idle:
        report = actor.exchange(close=True)
    assert "the disk is full" in report.trouble.message
    assert type(report.trouble.error()) is Vis4merError


def test_a_worker_that_cannot_load_the_pipeline_says_so(post, tmp_path, monkeypatch):
    actor = Actor(post)
    actor.begin()
    monkeypatch.setitem(sys.modules, "vis4mer.extract.stages.pipeline", None)
    report = actor.exchange(ex.videos(tmp_path / "videos"), wait_seconds=60)
    assert report.idle
    assert "ModuleNotFoundError" in report.trouble.message


def test_a_worker_that_does_not_see_the_files_makes_nothing(post, tmp_path):
    (tmp_path / ".mark").unlink()
    trouble = Actor(post).begin().trouble
    assert f"does not see {tmp_path}, where the cache is" in trouble.message
    (tmp_path / ".mark").touch()
    gone = replace(post, folders=(tmp_path / "elsewhere",))
    assert "where videos are: mount it" in Actor(gone).begin().trouble.message
    assert not (tmp_path / "c.zarr").exists()


def test_a_missing_file_of_weights_is_a_usage_error(post, tmp_path, monkeypatch):
    monkeypatch.undo()
    missing = replace(post.asked, weights=str(tmp_path / "w.pth"), backbone="vit_tiny_patch16_224")
    trouble = Actor(replace(post, asked=missing)).begin().trouble
    assert isinstance(trouble.error(), UsageError)
    assert "w.pth" in trouble.message
    assert "\n" not in trouble.message


# The pipeline with a feed --------------------------------------------------------------------


def test_a_feed_gives_the_same_entries_as_a_list(tmp_path):
    for i in range(6):
        ex.write_video(tmp_path / "videos", f"{i}", 3 + i, start=10 * i)
    videos, feed = ex.videos(tmp_path / "videos"), Feed()
    cache = ex.grey_cache(tmp_path / "c.zarr")

    def trickle() -> None:
        for video in videos:
            feed.put([video])
            time.sleep(0.01)
        feed.close()

    giver = threading.Thread(target=trickle)
    giver.start()
    fill_cache((), cache, ex.grey_backbone(), ex.FakeReader(), workers=2, claiming=True, feed=feed)
    giver.join()
    assert sorted(receipt.id for receipt in feed.receipts()) == ids(videos)
    for i in range(6):
        ex.assert_entry(open_cache(cache.path), f"{i}.mp4", 3 + i, start=10 * i)


def test_a_run_that_breaks_down_does_not_wait_for_its_feed(tmp_path):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    feed = Feed()
    with pytest.raises(KeyboardInterrupt):
        fill_cache(
            (),
            ex.grey_cache(tmp_path / "c.zarr"),
            ex.grey_backbone(),
            ex.FakeReader(),
            claiming=True,
            feed=feed,
            progress=interrupt,
        )


def test_a_feed_and_a_limit_do_not_go_together(tmp_path):
    cache = ex.grey_cache(tmp_path / "c.zarr")
    with pytest.raises(UsageError, match="limit is 3 beside a feed"):
        fill_cache((), cache, ex.grey_backbone(), ex.FakeReader(), limit=3, feed=Feed())


# The crew, on a cluster that is made up ------------------------------------------------------


class MadeUpRay:
    """Calls are done when they are waited for, in this process. `dies`: by the number of a worker,
    after how many calls it is dead; `nodes_there`: what the cluster has."""

    def __init__(self, num_gpus: int, dies: dict[int, int] | None = None) -> None:
        self.exceptions = type("exceptions", (), {"RayError": MadeUpError})
        self.num_gpus = num_gpus
        self.dies = dies or {}
        self.asked: list[dict[str, object]] = []
        self.made: list[MadeUpWorker] = []
        self.killed: list[MadeUpWorker] = []

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}] * self.num_gpus

    def available_resources(self):
        return {}

    def remote(self, _):
        made = type("Made", (), {"remote": staticmethod(self.make)})
        return type(
            "OfClass", (), {"options": staticmethod(lambda **options: self.note(options, made))}
        )

    def note(self, options, made):
        self.asked.append(options)
        return made

    def make(self, post: Post):
        self.made.append(MadeUpWorker(self, len(self.made), post))
        return self.made[-1]

    def kill(self, worker) -> None:
        self.killed.append(worker)

    def wait(self, calls, *, num_returns, timeout):  # noqa: ARG002 - as Ray's
        return calls[:num_returns], calls[num_returns:]

    def get(self, call):
        return call()


class MadeUpWorker:
    """Ends every video that it is given, one a call."""

    def __init__(self, ray: MadeUpRay, number: int, post: Post) -> None:
        self.ray, self.number, self.post = ray, number, post
        self.calls = 0
        self.hand: list[str] = []
        self.done: list[str] = []
        self.begin = type("begin", (), {"remote": lambda: self.call(self.say_hello)})
        self.exchange = type(
            "exchange", (), {"remote": lambda *a, **o: self.call(lambda: self.work(*a, **o))}
        )

    def call(self, work):
        def answer():
            self.calls += 1
            if self.calls > self.ray.dies.get(self.number, 1 << 30):
                raise MadeUpError("the worker died")
            return work()

        return answer

    def say_hello(self):
        if not self.post.asked.cache_path.exists():
            ex.grey_cache(self.post.asked.cache_path)
        process = replace(Worker.here("0" * 16), pid=1000 + self.number)
        threads = {"reading": 2, "backbone": 1, "writing": 1}
        return Begun(process=process, threads=threads, trouble=self.trouble())

    def trouble(self) -> Trouble | None:
        return None

    def work(self, videos, *, close, stop):
        self.hand += [] if stop else ids(videos)
        ended = [self.hand.pop(0)] if self.hand else []
        self.done += ended
        return Report(
            receipts=tuple(map(extracted, ended)),
            num_waiting=len(self.hand),
            idle=stop or (close and not self.hand),
            frames=10 * len(self.done),
            seconds=1.0,
            busy_seconds={"reading": 1.0, "backbone": 1.0, "writing": 0.0},
            reading=(),
        )


def made_up_crew(
    tmp_path, ray: MadeUpRay, count: int, monkeypatch, *, most: int | None = None, **options
) -> Crew:
    monkeypatch.setattr(crew_module, "HIRE_SECONDS", 0.0)
    asked = ExtractRequest(cache=tmp_path / "c.zarr")
    post = Post(asked=asked, cores=1, mark=tmp_path, folders=())
    return Crew(ray, post, Need(gpus=1, most=most), sources(count), **options)


def work_to_the_end(crew: Crew) -> None:
    with crew:
        while crew.has_work:
            crew.look()


def test_a_dead_worker_is_replaced_and_nothing_is_lost(tmp_path, monkeypatch):
    ray, told = MadeUpRay(2, dies={0: 4}), []
    crew = made_up_crew(tmp_path, ray, 30, monkeypatch, tell=told.append)
    work_to_the_end(crew)
    summary = crew.summary()
    assert (summary.extracted, summary.left, summary.interrupted) == (30, 0, False)
    assert len(ray.made) == 3
    assert sorted(name for worker in ray.made for name in worker.done) == sorted(ids(sources(30)))
    assert len(told) == 1
    assert "pid 1000 died with" in told[0]
    assert summary.frames == 300
    assert set(ray.killed) == set(ray.made)  # nobody is left behind


def test_the_cache_that_a_worker_has_made_is_looked_for_anew(tmp_path, monkeypatch):
    looked: list[Path] = []
    monkeypatch.setattr(crew_module, "look_anew", looked.append)
    work_to_the_end(made_up_crew(tmp_path, MadeUpRay(1), 2, monkeypatch))
    assert looked == [tmp_path]


def test_a_machine_that_joins_is_put_to_work(tmp_path, monkeypatch):
    ray = MadeUpRay(1)
    with made_up_crew(tmp_path, ray, 40, monkeypatch) as crew:
        while crew.has_work:
            crew.look()
            if crew.progress().extracted == 10:
                ray.num_gpus = 3
    assert crew.summary().extracted == 40
    assert len(ray.made) == 3
    assert all(worker.done for worker in ray.made)


def test_a_worker_has_the_cores_of_its_machine_and_waits_for_no_machine_that_is_gone(
    tmp_path, monkeypatch
):
    ray = MadeUpRay(0)
    nodes = [{"Alive": True, "Resources": resources} for resources in (SMALL, LARGE)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    crew = made_up_crew(tmp_path, ray, 9, monkeypatch)
    monkeypatch.setattr(ray, "wait", lambda calls, **_: ([], calls))  # nobody has begun
    with crew:
        crew.look()
        assert [worker.post.cores for worker in ray.made] == [4, 4, 64]
        assert [asked["num_cpus"] for asked in ray.asked] == [4, 4, 64]
        assert ray.asked[2]["resources"] == {"node:10.0.0.2": 0.001}
        nodes.pop()
        crew.look()
        assert ray.killed == ray.made[2:]
        assert len(ray.made) == 3


def test_workers_that_wait_for_room_are_asked_for_anew_when_a_smaller_machine_joins(
    tmp_path, monkeypatch
):
    ray, nodes = MadeUpRay(0), [{"Alive": True, "Resources": LARGE}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "wait", lambda calls, **_: ([], calls))  # nobody has begun
    with made_up_crew(tmp_path, ray, 9, monkeypatch, most=4) as crew:
        crew.look()
        assert [worker.post.cores for worker in ray.made] == [64, 64, 64, 64]
        nodes.append({"Alive": True, "Resources": SMALL})
        crew.look()
        assert ray.killed == ray.made[1:4]
        assert [worker.post.cores for worker in ray.made[4:]] == [4, 4, 4]
        assert [bool(asked["resources"]) for asked in ray.asked[4:]] == [True, True, False]


def test_a_stop_leaves_what_nobody_has_begun(tmp_path, monkeypatch):
    ray = MadeUpRay(2)
    with made_up_crew(tmp_path, ray, 40, monkeypatch) as crew:
        while crew.has_work:
            crew.look(stop=crew.progress().extracted >= 5)
    summary = crew.summary()
    assert summary.interrupted
    assert 5 <= summary.extracted <= 12  # one more each, as it hears of the stop
    assert summary.extracted + summary.left == 40
    assert summary.exit_code == 1


def test_workers_that_cannot_begin_end_the_run_when_no_other_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeUpWorker, "trouble", lambda _: Trouble(message="no such weights"))
    crew = made_up_crew(tmp_path, MadeUpRay(2), 5, monkeypatch)
    with pytest.raises(Vis4merError, match="no such weights"):
        work_to_the_end(crew)


def test_a_machine_whose_worker_cannot_begin_is_done_without(tmp_path, monkeypatch):
    def trouble(worker):
        return Trouble(message="node x: no such weights") if worker.number == 0 else None

    monkeypatch.setattr(MadeUpWorker, "trouble", trouble)
    ray, told = MadeUpRay(2), []
    crew = made_up_crew(tmp_path, ray, 9, monkeypatch, tell=told.append)
    work_to_the_end(crew)
    assert crew.summary().extracted == 9
    assert told == ["a worker could not begin, the others go on: node x: no such weights"]
    assert len(ray.made) == 2


def test_workers_that_die_before_they_begin_are_not_tried_for_ever(tmp_path, monkeypatch):
    ray = MadeUpRay(1, dies=dict.fromkeys(range(100), 0))
    crew = made_up_crew(tmp_path, ray, 9, monkeypatch)
    with pytest.raises(Vis4merError, match="died before any began: the worker died"):
        work_to_the_end(crew)


def test_what_kills_its_workers_is_given_up_and_recorded(tmp_path, monkeypatch):
    ray = MadeUpRay(1, dies=dict.fromkeys(range(3), 1))
    crew = made_up_crew(tmp_path, ray, 2, monkeypatch)
    work_to_the_end(crew)
    summary = crew.summary()
    assert [failure.id for failure in summary.failures] == ["0"]
    assert (summary.extracted, summary.exit_code) == (1, 3)
    assert {f.id for f in open_cache(tmp_path / "c.zarr").failures()} == {"0"}


def test_of_many_videos_the_one_that_kills_is_given_up_alone(tmp_path, monkeypatch):
    work = MadeUpWorker.work

    def die_at_the_poison(self, videos, *, close, stop):
        if [*self.hand, *ids(videos)][:1] == ["0"]:
            raise MadeUpError("out of memory")
        return work(self, videos, close=close, stop=stop)

    monkeypatch.setattr(MadeUpWorker, "work", die_at_the_poison)
    ray = MadeUpRay(2)
    crew = made_up_crew(tmp_path, ray, 300, monkeypatch)
    work_to_the_end(crew)
    summary = crew.summary()
    assert [failure.id for failure in summary.failures] == ["0"]
    assert (summary.extracted, summary.left) == (299, 0)
    assert len(ray.made) == 2 + MAX_DEATHS


def test_a_video_that_was_committed_before_its_worker_died_is_no_failure(tmp_path, monkeypatch):
    ray = MadeUpRay(1, dies=dict.fromkeys(range(3), 1))
    crew = made_up_crew(tmp_path, ray, 1, monkeypatch)
    monkeypatch.setattr(Cache, "look_again", lambda _, video_id: video_id == "0")
    work_to_the_end(crew)
    assert (crew.summary().extracted, crew.summary().failures) == (1, ())


def test_a_machine_whose_workers_die_at_once_ends_no_run_that_goes_well(tmp_path, monkeypatch):
    ray, told = MadeUpRay(1, dies=dict.fromkeys(range(1, 100), 0)), []
    with made_up_crew(tmp_path, ray, 60, monkeypatch, tell=told.append) as crew:
        while crew.has_work:
            crew.look()
            if crew.progress().extracted == 10:
                ray.num_gpus = 3
    assert crew.summary().extracted == 60
    assert told == ["3 workers died before any began: the worker died; the others go on"]
    assert len(ray.made) == 1 + 2 * 3  # three tries for each of two places


def test_workers_that_are_out_of_reach_keep_none_from_being_ended(tmp_path, monkeypatch):
    class Unreachable(MadeUpRay):
        def kill(self, worker) -> None:
            super().kill(worker)
            raise MadeUpError("nobody there")

    ray = Unreachable(3, dies={1: 2})
    crew = made_up_crew(tmp_path, ray, 30, monkeypatch)
    work_to_the_end(crew)
    assert crew.summary().extracted == 30
    assert set(ray.killed) == set(ray.made)


def test_the_claims_of_a_process_are_let_go_of_and_no_others(tmp_path):
    cache = ex.grey_cache(tmp_path / "c.zarr")
    with Claims(cache.path) as claims:
        claims.take("a.mp4")
        worker = read_worker(cache.path, claims.token)
        assert let_go(cache.path, replace(worker, host="another")) == 0
        assert let_go(cache.path, replace(worker, process_start=1)) == 0
        assert let_go(cache.path, worker) == 1
        assert not list(list_claims(cache.path))


# A real cluster ------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_real_cluster_fills_a_cache_while_a_worker_is_killed(tmp_path, monkeypatch):
    """Two declared GPUs, two workers; one is killed while it has something in hand."""
    import ray

    (tmp_path / "videos").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for i in range(12):
        write_clip(tmp_path / "videos" / f"{i:02}.mp4", num_frames=30)
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGTERM, before)
    told: list[str] = []
    killed: list[int] = []

    def kill(progress) -> None:
        held = {claim.worker for claim in list_claims(tmp_path / "c.zarr")}
        workers = [token for token in list_workers(tmp_path / "c.zarr") if token in held]
        if not killed and workers and progress.extracted >= 2:
            killed.append(read_worker(tmp_path / "c.zarr", workers[0]).pid)
            os.kill(killed[0], signal.SIGKILL)

    try:
        summary = engine_named("ray")(
            ExtractRequest(
                inputs=[str(tmp_path / "videos")],
                cache=tmp_path / "c.zarr",
                backbone="ray_backbone:slow_grey",
                weights="random:0",
                fps=1,
                batch_size=3,
            ),
            options=EngineOptions(),
            on_note=told.append,
            progress=kill,
        )
    finally:
        ray.shutdown()
    cache = open_cache(tmp_path / "c.zarr")
    assert killed
    assert any(f"pid {killed[0]} died with" in note for note in told)
    assert len(cache) == 12
    assert (summary.failures, summary.left) == ((), 0)
    assert summary.extracted + summary.already_there == 12
    assert not verify_cache(cache, "full").problems
    assert not list(list_claims(cache.path))
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_client_of_a_cluster_fills_a_cache(tmp_path, monkeypatch):
    """By ray://, from a process that is no part of it."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv(BATCH_SECONDS, "0")
    from ray.cluster_utils import Cluster

    (tmp_path / "videos").mkdir()
    for i in range(4):
        write_clip(tmp_path / "videos" / f"{i}.mp4", num_frames=20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    head = {"num_cpus": 3, "num_gpus": 1, "ray_client_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        summary = engine_named("ray")(
            ExtractRequest(
                inputs=[str(tmp_path / "videos")],
                cache=tmp_path / "c.zarr",
                backbone="ray_backbone:slow_grey",
                weights="random:0",
                fps=5,
            ),
            options=EngineOptions(address=f"ray://127.0.0.1:{port}"),
        )
    finally:
        cluster.shutdown()
    assert (summary.extracted, summary.failures, summary.left) == (4, (), 0)
    cache = open_cache(tmp_path / "c.zarr")
    assert len(cache) == 4
    assert not verify_cache(cache, "full").problems
