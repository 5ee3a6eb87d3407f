#!/usr/bin/env python3
"""Judge smears with an exported network; needs onnxruntime, numpy and pillow only. Research use, not for diagnosis.

    python onnx_verdict.py seg.onnx smear.png [...]

It resizes as the toolkit does and says the same. It does not cover smears larger than the input by crops.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
side = int(facts["input_size"])
if len(session.get_inputs()) > 1:
    sys.exit("this network needs a mask beside the image: see docs/export.md")

for name in sys.argv[2:]:
    picture = Image.open(name).convert("RGB")
    small = picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    image = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255
    chances, mask = session.run(["probabilities", "mask_probability"], {"image": image})
    tiers = ", ".join(f"Tier-{'I' * n} {chances[0, n - 1]:.4f}" for n in range(1, int(facts["open_tiers"]) + 1))
    verdict = "Anemic" if chances[0, 3] > 0.5 else "Healthy"
    print(f"{name}: {verdict}, chance of Anemic {chances[0, 3]:.4f} ({tiers}); cells cover {(mask > 0.5).mean():.1%}")
    drawn = Image.fromarray((mask[0, 0] * 255).round().astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    drawn.point(lambda level: 255 * (level > 127)).save(f"{name.rsplit('.', 1)[0]}_mask.png")
