"""Runs in the container that run.sh boots: the package under a real systemd."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

HERE = pathlib.Path(__file__).parent
CONF = pathlib.Path("/etc/warmroute/config.yaml")
DROP_IN = pathlib.Path("/etc/systemd/system/warmroute.service.d/test.conf")
SOCKET_DROP_IN = pathlib.Path("/etc/systemd/system/warmroute.socket.d/test.conf")
SERVICE, SOCKET = "warmroute.service", "warmroute.socket"
DEADLINE_S = 20

GOOD = """
listen: 127.0.0.1:8080
admin: {listen: "127.0.0.1:9900"}
metrics: {listen: "127.0.0.1:9901"}
health: {interval_ms: 200}
timeouts: {drain_s: 60}
kv_events: off
workers:
  - {id: w0, url: "http://127.0.0.1:8001"}
"""
BAD = GOOD + "retries: 3\n"


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def show(name, unit=SERVICE):
    return run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()


def main_pid():
    return int(show("MainPID"))


def eventually(what, holds, deadline_s=DEADLINE_S):
    until = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.05)


def journal(since):
    return run("journalctl", "-u", SERVICE, "-o", "cat", "--since", f"@{since:.6f}").stdout


def request(method, path, body=None, port=8080, timeout=DEADLINE_S):
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"content-type": "application/json"}
        conn.request(method, path, body and json.dumps(body), headers)
        answer = conn.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        conn.close()


def chat(content="hello", port=8080, **more):
    message = {"role": "user", "content": content}
    body = {"model": "m", "messages": [message], **more}
    return request("POST", "/v1/chat/completions", body, port)


def workers():
    _, _, body = request("GET", "/workers", port=9900)
    return [worker["id"] for worker in json.loads(body)["workers"]]


class Stream(threading.Thread):
    """A request whose answer takes so long; `ended_well` once joined."""

    def __init__(self, seconds):
        super().__init__(daemon=True)
        self.seconds, self.ended_well, self.begun = seconds, False, threading.Event()
        self.start()
        assert self.begun.wait(DEADLINE_S), "the stream does not begin"

    def run(self):
        conn = http.client.HTTPConnection("127.0.0.1", 8080, timeout=DEADLINE_S)
        message = {"role": "user", "content": "a stream"}
        body = {"model": "m", "stream": True, "seconds": self.seconds, "messages": [message]}
        headers = {"content-type": "application/json"}
        conn.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = conn.getresponse()
        text = answer.read(40)
        self.begun.set()
        with contextlib.suppress(http.client.HTTPException, OSError):
            text += answer.read()
            self.ended_well = text.endswith(b"data: [DONE]\n\n")


class Load:
    """Clients that ask all the time, each on a connection of its own; a failure is a lost request."""

    def __init__(self, clients=4):
        self.answered, self.lost, self.over = 0, [], threading.Event()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(clients)]

    def ask(self):
        while not self.over.is_set():
            try:
                status, _, body = chat()
                if status == 200:
                    self.answered += 1
                else:
                    self.lost.append(f"{status} {body[:200]}")
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
            time.sleep(0.005)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        eventually("the load runs", lambda: self.answered > 20)
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                # It goes on for a while after whatever was done under it.
                answered = self.answered
                eventually("the load goes on", lambda: self.answered > answered + 50)
        finally:
            self.over.set()
            for thread in self.threads:
                thread.join()


class Test(unittest.TestCase):
    def setUp(self):
        self.since = time.time()
        run("systemctl", "stop", SOCKET, SERVICE, check=False)
        for path in (DROP_IN, SOCKET_DROP_IN):
            path.unlink(missing_ok=True)
        if "ok" not in run("dpkg", "-s", "warmroute", check=False).stdout:
            run("dpkg", "--force-confold", "--force-confmiss", "--install", HERE / "v1.deb")
        CONF.write_text(GOOD)
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed")

    def drop_in(self, text, path=DROP_IN):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        run("systemctl", "daemon-reload")

    def start(self):
        run("systemctl", "start", SERVICE)
        self.assertEqual(show("ActiveState"), "active")
        return main_pid()

    def upgraded_from(self, before):
        """The successor's id, once systemd takes it for the main process."""
        changed = lambda: main_pid() not in (0, before) and main_pid()
        after = eventually("another main process", changed)
        self.assertEqual(show("ActiveState"), "active")
        self.assertEqual(show("NRestarts"), "0", "not by a restart")
        return after

    def assert_sandboxed(self, pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        uid = int(run("id", "-u", "warmroute").stdout)
        self.assertEqual(int(fields["Uid"].split()[0]), uid)
        self.assertEqual(int(fields["CapEff"], 16), 1 << 10, "CAP_NET_BIND_SERVICE alone")
        self.assertEqual((fields["Seccomp"], fields["NoNewPrivs"]), ("2", "1"))

    # --- installation and start

    def test_installation_starts_nothing(self):
        run("dpkg", "--purge", "warmroute")
        run("dpkg", "--install", HERE / "v1.deb")
        self.assertEqual(show("ActiveState"), "inactive")
        for unit in (SERVICE, SOCKET):
            self.assertEqual(run("systemctl", "is-enabled", unit, check=False).stdout, "disabled\n")

    def test_as_shipped_it_starts_and_says_that_no_engine_is_there(self):
        run("dpkg", "--purge", "warmroute")
        run("dpkg", "--install", HERE / "v1.deb")
        self.start()
        self.assertEqual(request("GET", "/health")[0], 503)
        self.assertEqual(request("GET", "/livez", port=9900)[0], 200)

    def test_start_waits_until_it_serves(self):
        pid = self.start()
        status, headers, _ = chat()
        self.assertEqual((status, headers.get("x-router-backend")), (200, "w0"))
        self.assert_sandboxed(pid)
        state = os.stat("/var/lib/warmroute")
        self.assertEqual(oct(state.st_mode & 0o777), "0o700")
        self.assertTrue(show("StatusText"), "it says how it is")

    def test_a_bad_configuration_is_not_tried_again(self):
        CONF.write_text(BAD)
        self.assertNotEqual(run("systemctl", "start", SERVICE, check=False).returncode, 0)
        eventually("it failed", lambda: show("ActiveState") == "failed")
        self.assertEqual((show("ExecMainStatus"), show("NRestarts")), ("64", "0"))
        self.assertIn("retries", journal(self.since))

    def test_a_port_below_1024(self):
        CONF.write_text(GOOD.replace("127.0.0.1:8080", "127.0.0.1:80"))
        self.start()
        self.assertEqual(chat(port=80)[0], 200)

    def test_tokenizers_work_in_the_sandbox(self):
        # Their regular expressions would be compiled to machine code where that is allowed.
        folder = CONF.parent / "tokenizer"
        shutil.copytree(HERE / "tokenizer", folder, dirs_exist_ok=True)
        run("chgrp", "-R", "warmroute", folder)
        CONF.write_text(GOOD + f"models: {{m: {{tokenizer: {folder}}}}}\n")
        self.start()
        text = "The quick brown fox jumps over the lazy dog. " * 40
        eventually("matched by its tokens", lambda: self.matched(text)[0] > 0)

    def matched(self, text):
        held, total = chat(text)[1]["x-router-matched"].split("/")
        self.assertGreater(int(total), 1)
        return int(held), int(total)

    def test_settings_of_the_environment_file(self):
        other = pathlib.Path("/etc/warmroute/other.yaml")
        other.write_text(GOOD.replace("w0", "other"))
        shutil.chown(other, group="warmroute")
        environment = pathlib.Path("/etc/default/warmroute")
        before = environment.read_text()
        environment.write_text(f"WARMROUTE_CONF={other}\n")
        try:
            self.start()
            self.assertEqual(workers(), ["other"])
        finally:
            environment.write_text(before)
            other.unlink()

    # --- reload

    def test_reload_takes_the_new_file_in(self):
        pid = self.start()
        CONF.write_text(GOOD + '  - {id: w1, url: "http://127.0.0.1:8002"}\n')
        with Load() as load:
            run("systemctl", "reload", SERVICE)
            eventually("the new worker", lambda: workers() == ["w0", "w1"])
        self.assertEqual((load.lost, main_pid()), ([], pid))
        eventually("active again", lambda: show("ActiveState") == "active")

    def test_reload_of_a_bad_file_fails_and_changes_nothing(self):
        pid = self.start()
        CONF.write_text(BAD)
        with Load() as load:
            self.assertNotEqual(run("systemctl", "reload", SERVICE, check=False).returncode, 0)
            eventually("it says why", lambda: "retries" in show("StatusText"))
        self.assertEqual((load.lost, main_pid(), show("ActiveState")), ([], pid, "active"))
        CONF.write_text(GOOD)
        run("systemctl", "reload", SERVICE)
        eventually("it is well again", lambda: "retries" not in show("StatusText"))

    # --- upgrade

    def test_upgrade_in_place_loses_nothing(self):
        before = self.start()
        stream = Stream(seconds=4)
        with Load() as load:
            run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
            after = self.upgraded_from(before)
        stream.join()
        self.assertEqual((load.lost, stream.ended_well), ([], True))
        self.assert_sandboxed(after)
        gone = lambda: not pathlib.Path(f"/proc/{before}").exists()
        eventually("the old process leaves", gone)
        self.assertEqual((show("ActiveState"), main_pid()), ("active", after))

    def test_the_watchdog_goes_on_after_an_upgrade(self):
        self.drop_in("[Service]\nWatchdogSec=2\n")
        before = self.start()
        run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
        after = self.upgraded_from(before)
        time.sleep(5)
        self.assertEqual((main_pid(), show("NRestarts")), (after, "0"), "who works is left alone")
        os.kill(after, signal.SIGSTOP)
        again = lambda: main_pid() not in (0, before, after) and show("ActiveState") == "active"
        eventually("a hung successor is replaced", again)

    def test_upgrade_of_the_package_loses_nothing(self):
        before = self.start()
        stream = Stream(seconds=4)
        with Load() as load:
            done = run("dpkg", "--force-confold", "--install", HERE / "v2.deb")
            after = self.upgraded_from(before)
            self.assertIn("upgraded in place", done.stdout)
            # And back.
            done = run("dpkg", "--force-confold", "--force-downgrade", "--install", HERE / "v1.deb")
            self.assertIn("upgraded in place", done.stdout)
            self.upgraded_from(after)
        stream.join()
        self.assertEqual((load.lost, stream.ended_well), ([], True))

    def test_an_upgrade_that_cannot_start_leaves_the_old_one(self):
        before = self.start()
        CONF.write_text(BAD)
        with Load() as load:
            run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
            eventually("it says why", lambda: "retries" in journal(self.since))
        self.assertEqual((load.lost, main_pid(), show("ActiveState")), ([], before, "active"))

    def test_a_successor_that_crashes_is_replaced_while_its_predecessor_drains(self):
        before = self.start()
        stream = Stream(seconds=40)
        run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
        after = self.upgraded_from(before)
        os.kill(after, signal.SIGKILL)
        # Long before the watchdog (30 s): it is a child of systemd's, which is told of its end.
        again = lambda: main_pid() not in (0, before, after) and show("ActiveState") == "active"
        eventually("a new main process", again, 10)
        self.assertEqual(chat()[0], 200)
        # systemd clears what is left of the service first: KillMode=mixed.
        stream.join(5)
        self.assertFalse(stream.is_alive() or stream.ended_well)

    def test_stop_after_an_upgrade_waits_for_the_predecessor_too(self):
        before = self.start()
        stream = Stream(seconds=6)
        run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
        self.upgraded_from(before)
        run("systemctl", "stop", SERVICE)
        stream.join()
        self.assertTrue(stream.ended_well, "its stream was cut")

    # --- crash, hang, stop

    def test_a_crash_is_followed_by_a_start(self):
        before = self.start()
        os.kill(before, signal.SIGKILL)
        again = lambda: main_pid() not in (0, before) and show("ActiveState") == "active"
        eventually("it runs again", again)
        self.assertEqual((show("NRestarts"), chat()[0]), ("1", 200))

    def test_ten_crashes_in_a_row_are_followed_by_a_start(self):
        self.drop_in("[Service]\nRestartSec=100ms\n")
        self.start()
        for _ in range(10):
            pid = main_pid()
            os.kill(pid, signal.SIGKILL)
            eventually("it runs again", lambda: main_pid() not in (0, pid))
        eventually("it serves", lambda: show("ActiveState") == "active")

    def test_a_hung_process_is_replaced(self):
        self.drop_in("[Service]\nWatchdogSec=2\n")
        before = self.start()
        time.sleep(5)
        self.assertEqual(main_pid(), before, "who works is left alone")
        os.kill(before, signal.SIGSTOP)
        again = lambda: main_pid() not in (0, before) and show("ActiveState") == "active"
        eventually("it runs again", again)
        self.assertEqual(chat()[0], 200)
        self.assertIn("watchdog", journal(self.since).lower())

    def test_stop_drains(self):
        self.start()
        stream = Stream(seconds=3)
        run("systemctl", "stop", SERVICE)
        stream.join(1)
        self.assertTrue(stream.ended_well)
        self.assertEqual((show("Result"), show("ExecMainStatus")), ("success", "0"))

    def test_the_watchdog_leaves_who_drains_alone(self):
        self.drop_in("[Service]\nWatchdogSec=2\n")
        for stop in (["systemctl", "stop", SERVICE], ["kill", "-TERM"]):
            pid = self.start()
            stream = Stream(seconds=6)
            run(*stop, *([str(pid)] if stop[0] == "kill" else []))
            stream.join()
            self.assertTrue(stream.ended_well, stop)
            eventually("it ended", lambda: show("ActiveState") == "inactive")
            self.assertEqual((show("Result"), show("NRestarts")), ("success", "0"), stop)

    # --- socket unit

    def with_socket(self):
        run("systemctl", "start", SOCKET)
        return self.start()

    def test_the_first_connection_starts_the_service(self):
        run("systemctl", "start", SOCKET)
        self.assertEqual(show("ActiveState"), "inactive")
        self.assertEqual(chat()[0], 200)
        self.assertEqual(show("ActiveState"), "active")

    def test_with_the_socket_a_crash_loses_only_what_was_running(self):
        pid = self.with_socket()
        os.kill(pid, signal.SIGKILL)
        # The new start is a second away (RestartSec): these wait in the socket.
        answers = []
        ask = lambda: answers.append(chat()[0])
        asking = [threading.Thread(target=ask) for _ in range(20)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        self.assertEqual(answers, [200] * 20)
        self.assertNotEqual(main_pid(), pid)

    def test_with_the_socket_a_restart_refuses_no_connection(self):
        self.with_socket()
        with Load() as load:
            run("systemctl", "restart", SERVICE)
        self.assertEqual(load.lost, [])

    def test_with_the_socket_an_upgrade_keeps_it(self):
        before = self.with_socket()
        with Load() as load:
            run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
            after = self.upgraded_from(before)
            eventually("the old process leaves", lambda: not pathlib.Path(f"/proc/{before}").exists())
            os.kill(after, signal.SIGTERM)
            eventually("it stops", lambda: show("ActiveState") != "active" or main_pid() != after)
        self.assertEqual(load.lost, [], "started again by the socket that systemd still has")

    def test_a_socket_on_another_address_by_drop_in(self):
        self.drop_in("[Socket]\nListenStream=\nListenStream=127.0.0.1:80\n", SOCKET_DROP_IN)
        # Without the capability only systemd can have bound it.
        self.drop_in("[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\nPrivateUsers=yes\n")
        CONF.write_text(GOOD.replace("127.0.0.1:8080", "127.0.0.1:80"))
        self.with_socket()
        self.assertEqual(chat(port=80)[0], 200)

    # --- removal

    def test_removal_stops_service_and_socket_and_drains(self):
        self.with_socket()
        stream = Stream(seconds=2)
        run("dpkg", "--remove", "warmroute")
        stream.join(1)
        self.assertTrue(stream.ended_well)
        with self.assertRaises(OSError):
            chat()
        self.assertTrue(CONF.exists())
        run("dpkg", "--purge", "warmroute")
        for path in (CONF.parent, pathlib.Path("/var/lib/warmroute"), DROP_IN.parent):
            self.assertFalse(path.exists(), path)


if __name__ == "__main__":
    print(run("systemctl", "--version").stdout.splitlines()[0])
    fakes = [
        subprocess.Popen([sys.executable, HERE / "worker.py", name, port])
        for name, port in (("w0", "8001"), ("w1", "8002"))
    ]
    try:
        names = [f"Test.{name}" for name in sys.argv[1:]]
        unittest.main(argv=[sys.argv[0], "--verbose", *names])
    finally:
        for fake in fakes:
            fake.kill()
            fake.wait()
