"""A training by itself, to be killed: python train_once.py LAKE BASE PROFILE [section.key=value ...]; prints the adapter's digest.

MLFLOW_TRACKING_URI names the tracker, or it lies in the lake.
"""

import os
import sys

from egomill.schemas.config import Profile
from egomill.tasks.lake import releases
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.training import train

if __name__ == "__main__":
    folder, base, profile, *settings = sys.argv[1:]
    lake = Lake(folder)
    asked = Profile.load(profile, [f"model.base='{base}'", *settings])
    adapter = train.train(lake, releases.get(lake), asked, Tracker.of(os.environ.get("MLFLOW_TRACKING_URI", ""), folder), "night")
    print(adapter.tags["sha256"])
