"""The audit: every claim of this project is measured, and stands beside what it should be.

    reference   the formulas, integrators and likelihood of reference_gmm_sde.py
    samplers    every step of a sampler in torch is that of the reference
    score       sigma^2 E|s_theta - s*|^2 / D = E|eps_theta - eps*|^2 / D, the error of a network
    atoms       mode full: which atoms are missing, and where the others sit
    latents     a VAE and three priors of its latents
    dddm        few steps of distributional diffusion

    python audit.py

measures all of it, with every checkpoint that ships, in some two minutes on two CPU cores.  It
prints one table, writes claims.json and the pictures to outputs/audit/, and ends with exit status 1
if a claim fails.  A row without a tolerance only reports: expected is then the best possible.

    python audit.py --quick                 what needs no checkpoint, in less than a minute
    python audit.py --only reference        one subject; for this one torch is not loaded
    python audit.py --ckpt outputs/mine     runs of vp_sde.py, vp_sde_2d.py or latent_prior.py
    python audit.py --write                 all of it, into the tables of RESULTS.md
    python audit.py --write --full          with what takes minutes more

The claims are in audits/, a file a subject.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from audits.parts import SUBJECTS, chosen
from common import cli, results
from common.claims import HEAD, failures, measure
from common.cli import flag
from common.files import write_json
from common.folders import output_folder

RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(kw_only=True)
class Config:
    script = "audit"

    quick: bool = flag.run(False, "only the claims that need no checkpoint")
    only: str | None = flag.run(None, "one subject", choices=tuple(SUBJECTS))
    ckpt: list[str] | None = flag.run(
        None, "runs or checkpoints, instead of those that ship", parse=cli.path, many="flag"
    )
    full: bool = flag.run(False, "with the claims that take minutes more")
    write: bool = flag.run(False, "put the tables into RESULTS.md as well")
    out: str | None = flag.run(
        None, "output folder (default: outputs/audit, or a folder in it)", parse=cli.path
    )

    def settle(self, typed):
        if self.ckpt and (self.quick or self.only or self.write):
            raise ValueError("--ckpt measures those runs alone: leave --quick, --only, --write out")
        if self.quick and self.full:
            raise ValueError("--quick and --full exclude each other: leave one out")
        if not self.out:
            name = cli.folder_name(self, {"out", "write"})
            self.out = Path("outputs", "audit", "" if name == "default" else name)


# ------------------------------------------------------------------------------ the command


def main(argv=None):
    """Returns the exit status: 1 if a claim fails."""
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        parts = list(chosen(config))  # opens every network, before any work
        if not parts:
            raise ValueError("nothing to measure without a checkpoint: name one with --ckpt")

        # What is wrong with the files is said now, not after the work.
        tables = {}
        if config.write:
            results.read(RESULTS)
            if not (config.quick or config.only):
                tables["networks/checkpoints"] = results.networks_table()

        claims = []
        rows = []
        several = len(config.ckpt or []) > 1  # then each gets a folder for its pictures
        with output_folder(config.out) as out:
            print(HEAD)

            for part in parts:
                found = measure(part.checks)
                claims += found
                rows += [claim.as_dict() | part.about() for claim in found]
                tables[part.key] = results.claims_table(part.name, found, part.command)
                if part.draw:
                    folder = out / cli.safe_name(part.name) if several else out
                    part.draw(folder)

            write_json(out / "claims.json", rows)

        if config.write:
            results.update(RESULTS, SUBJECTS | {"networks": "The checkpoints that ship"}, tables)
        failed = len(failures(claims))
        print(f"{len(claims)} claims, of which {failed} fail; files in {out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
