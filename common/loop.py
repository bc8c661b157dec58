"""What every training does and no equation needs: AdamW, averaged weights, log, checkpoints.

    trainer = loop.Trainer(net, run)
    for step in trainer.steps():
        loss = ...                              # its random numbers depend on (seed, step) alone
        trainer.update(loss, mse=..., kl=...)   # backward, clip, AdamW, averaged weights
        if trainer.report_due:
            trainer.report(score_error=...)     # a line of log.jsonl

The run is saved every --save-every steps, at the end, and when it is asked to stop.  Several
processes, started by torchrun, take the step of one: each works on its own rows of the batch.
"""

import contextlib
import copy
import json
import math
import platform
import signal
import sys
import time

from common import checkpoints, cli, pictures
from common.devices import alone, autocast, mean_over_processes, own_rows, processes, rank
from common.files import write_json, write_whole
from common.runs import config_json, settings_of

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm


def learning_rate(step, total, peak, warmup=200, cooldown=0.4):
    """Warm up, stay, cool down linearly over the last 40 %: only the end depends on the total."""
    return peak * min(1.0, (step + 1) / warmup, max((total - step) / (cooldown * total), 1e-3))


def set_learning_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def update_ema(ema, net, decay, step):
    """ema <- d ema + (1 - d) net, with d rising from 0.1 to `decay`.  Buffers are copied."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in net.parameters()], 1 - d)
    for kept, new in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(new)


class Trainer:
    """The loop at the top of this file.

    net: the network, on run.device.  run: a runs.Run, whose checkpoint is continued if there is
    one.  extra: other modules and optimizers, saved and restored by name.  curves: what loss.png
    shows of the log, panels of pictures.loss_curve.  on_save: functions f(trainer) called after
    every save, and when a run is resumed.
    """

    def __init__(
        self,
        net,
        run,
        report_every=500,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        extra=None,
        curves=(),
        on_save=(),
    ):
        self.net = net
        self.run = run
        self.config = run.config
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        settings = dict(lr=self.config.lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.optimizer = torch.optim.AdamW(net.parameters(), **settings)
        self.extra = extra or {}
        self.curves = curves
        self.on_save = on_save
        self.report_every = min(report_every, self.config.save_every)

        # Where it stands: steps taken, the one in progress included, seconds spent, and the terms
        # of the loss since the last report.
        self.done = 0
        self.seconds = 0.0
        self.sums = {}
        if run.checkpoint:
            self.restore(run.checkpoint)
        self.first = self.done
        self.rows = own_rows(self.config.batch_size)  # of a batch: those of this process
        several = processes() > 1
        self.module = DistributedDataParallel(net) if several else net  # averages the gradients

        self.log = []
        if rank() == 0:  # the first that is written: what can be refused has been
            write_json(run.out / "config.json", config_json(run))
            self.log = read_log(run.out / "log.jsonl", self.done)

    def restore(self, checkpoint):
        path = self.run.out / "last.pt"
        checkpoints.load_weights(self.net, checkpoint["model"], path)
        checkpoints.load_weights(self.ema, checkpoint["ema"], path)
        checkpoints.load_optimizer(self.optimizer, checkpoint["optimizer"], path)
        for name, part in self.extra.items():
            if name not in checkpoint:
                raise ValueError(f"{path} holds no {name}: it is damaged, or of another version")
            is_optimizer = isinstance(part, torch.optim.Optimizer)
            load = checkpoints.load_optimizer if is_optimizer else checkpoints.load_weights
            load(part, checkpoint[name], path)
        self.done = checkpoint["step"]
        self.seconds = checkpoint["seconds"]
        self.sums = checkpoint["sums"]

    def steps(self):
        """The steps still to take.  When asked to stop it ends a step, saves, and raises."""
        total = self.config.train_steps
        self.bar = tqdm(
            range(self.first, total),
            desc="training",
            initial=self.first,
            total=total,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # in a log file, a line now and then
            disable=rank() > 0,
            leave=False,
        )
        if self.first and rank() == 0:
            self.draw()  # again: it may have been killed between the checkpoint and its pictures
        before = self.seconds
        start = time.perf_counter()
        with signals_wait() as stop:
            for step in self.bar:
                set_learning_rate(self.optimizer, learning_rate(step, total, self.config.lr))
                self.step = step
                self.done = step + 1
                yield step

                self.seconds = before + time.perf_counter() - start
                stopped = mean_over_processes(float(bool(stop))) > 0  # all leave at the same step
                due = self.done == total or self.done % self.config.save_every == 0
                if rank() == 0 and (due or stopped):
                    self.save()
                if stopped and self.done < total:
                    where = cli.quoted(self.run.out)
                    how = f"continue with --resume --out {where}"
                    raise KeyboardInterrupt(f"stopped at step {self.done}, saved; {how}")
        if stop:
            where = cli.quoted(self.run.out)
            raise KeyboardInterrupt(f"the training is complete; sample with --ckpt {where}")

    def update(self, loss, clip=1.0, **terms):
        """Backward, clip, and one step of AdamW."""
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.apply(norm, loss=loss, **terms)

    def apply(self, norm, **terms):
        """One step of AdamW down the gradients that are there.

        terms: numbers, the loss among them, averaged until the next report.  Of several processes
        all count for the loss, and the first for the other terms.  Raises FloatingPointError for
        a loss, or a norm of the gradient, that is not finite.
        """
        terms = {name: float(torch.as_tensor(value).detach()) for name, value in terms.items()}
        if not math.isfinite(terms["loss"] + float(norm)):
            last = self.run.out / "last.pt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "nothing is saved"
            what = f"the loss or its gradient is not finite at step {self.done}"
            raise FloatingPointError(f"{what}: {kept}; try a lower --lr")

        self.optimizer.step()
        update_ema(self.ema, self.net, self.config.ema_decay, self.step)
        terms["loss"] = mean_over_processes(terms["loss"])
        self.loss = terms["loss"]
        for name, value in terms.items():
            self.sums.setdefault(name, []).append(value)

    @property
    def report_due(self):
        due = self.done % self.report_every == 0 or self.done == self.config.train_steps
        return rank() == 0 and due

    def report(self, **numbers):
        """A line of log.jsonl: the mean of every term since the last line, and these numbers."""
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        line = dict(step=self.done, **means, seconds=round(self.seconds, 1), **numbers)
        self.log.append(line)
        with open(self.run.out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

        shown = {key: f"{value:.4f}" for key, value in numbers.items() if isinstance(value, float)}
        self.bar.set_postfix(loss=f"{means['loss']:.4f}", **shown)
        self.sums = {}

    def save(self):
        parts = dict(model=self.net, ema=self.ema, optimizer=self.optimizer, **self.extra)
        checkpoint = {name: part.state_dict() for name, part in parts.items()}
        checkpoint |= dict(
            script=self.config.script,
            predicts=self.config.predicts,
            config=settings_of(self.config),
            contents=self.run.contents,
            step=self.done,
            seconds=self.seconds,
            machine=f"{platform.machine()}, {self.run.device}, {torch.get_num_threads()} threads",
            sums=self.sums,
        )
        checkpoints.save_checkpoint(self.run.out / "last.pt", checkpoint)
        self.draw()

    def draw(self):
        """The pictures of a run that is saved."""
        pictures.loss_curve(self.run.out / "loss.png", self.log, *self.curves)
        with alone():  # the others go on, and wait at their next gradient
            for draw in self.on_save:
                draw(self)

    def trained(self):
        """The weights to sample with, as --use-ema says."""
        return self.ema if self.config.use_ema else self.net.eval().requires_grad_(False)

    def autocast(self):
        return autocast(self.run.device, self.config.precision)


@contextlib.contextmanager
def signals_wait():
    """Collect requests to stop in the list that it yields, instead of raising in mid-step.

    Ctrl-C, a polite kill, or a terminal that is closed.
    """
    caught = []
    kinds = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        kinds.append(signal.SIGHUP)
    kinds = [kind for kind in kinds if signal.getsignal(kind) != signal.SIG_IGN]  # nohup python ...
    before = {kind: signal.signal(kind, lambda *_: caught.append(1)) for kind in kinds}
    try:
        yield caught
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def read_log(path, step):
    """The lines of a log up to a step; later ones are dropped, for they will be written again."""
    lines = []
    if step and path.is_file():
        for text in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # half a line, where the run was killed
                lines.append(json.loads(text))
    whole = [line for line in lines if isinstance(line, dict) and type(line.get("step")) is int]
    lines = [line for line in whole if line["step"] <= step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines
