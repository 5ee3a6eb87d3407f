#!/usr/bin/env python3
"""Judge 8-bit, opaque smears: python onnx_verdict.py seg.onnx smear.png [...]; research use only, not for diagnosis."""
# Needs onnxruntime, numpy, pillow. Says what the toolkit says, except of smears larger than the input: no crops here.

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

name, smooth = sys.argv[1] if sys.argv[2:] else sys.exit(__doc__), Image.Resampling.BILINEAR
try:
    session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    if "input_size" not in (facts := session.get_modelmeta().custom_metadata_map) or len(session.get_inputs()) > 1:
        sys.exit(f"{name}: not of this toolkit, or a network that needs a mask beside the image: see docs/export.md")
    for name in sys.argv[2:]:
        if (stored := Image.open(name)).mode not in ("RGB", "L", "P") or "transparency" in stored.info:
            sys.exit(f"{name}: not 8-bit RGB, grey or palette without transparency, but {stored.mode}")
        whole = ImageOps.exif_transpose(stored).convert("RGB")
        small = np.asarray(whole.resize((int(facts["input_size"]),) * 2, smooth, reducing_gap=2.0), np.float32) / 255
        chances, mask = session.run(["probabilities", "mask_probability"], {"image": small.transpose(2, 0, 1)[None]})
        tiers = ", ".join(f"Tier-{'I' * n} {chances[0, n - 1]:.4f}" for n in range(1, int(facts["open_tiers"]) + 1))
        verdict = "Anemic" if chances[0, 3] > 0.5 else "Healthy"
        print(f"{name}: {verdict}, chance of Anemic {chances[0, 3]:.4f} ({tiers})")
        drawn = Image.fromarray((mask[0, 0] * 255).round().astype(np.uint8)).resize(whole.size, smooth)
        with Path(f"{Path(name).stem}_predicted_mask.png").open("xb") as file:
            drawn.point(lambda level: 255 * (level > 127)).save(file, "PNG")
except Exception as error:  # noqa: BLE001 - a file that is missing or damaged; each library has its own kinds
    sys.exit(f"{name}: {error}")
