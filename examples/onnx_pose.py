"""Draw one person's pose by an exported network; it needs onnxruntime, numpy and OpenCV, and nothing else.

python -m hrnetpp_lib export --checkpoint model.safetensors --format onnx --output network.onnx
python examples/onnx_pose.py network.onnx photo.jpg 60,20,120,200 pose.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

if len(sys.argv) != 5:
    sys.exit(__doc__)
network, photo, box, drawn = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
card = json.loads(session.get_modelmeta().custom_metadata_map["hrnetpp_lib"])
(height, width), cells = card["input_hw"], card["coordinates"]
if (image := cv2.imread(photo)) is None:
    sys.exit(f"{photo}: no image that OpenCV can read")

# The box, extended to the input's shape and padded, fills the crop, (x, y) lies at zoom * (x, y) + shift.
x, y, w, h = map(float, box.split(","))
corner = np.array([width, height]) - cells["size_minus_one"]  # of the crop, at the box's lower right
zoom = corner[0] / (max(w, h * width / height) * card["box_padding"])
shift = corner / 2 - zoom * np.array([x + w / 2, y + h / 2])
rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
crop = cv2.warpAffine(rgb, np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]), (width, height))

# The network sees the crop and its mirror image, whose heatmaps are brought back and moved a little.
images = (np.stack([crop, crop[:, ::-1]]).astype(np.float32) - card["rgb_mean"]) / card["rgb_std"]
images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
maps, mirrored = session.run(["heatmaps"], {"images": images})[0]
order = np.arange(len(maps))
for left, right in card["flip_pairs"]:
    order[[left, right]] = right, left
back = mirrored[order, :, ::-1]
moved = np.concatenate([back[:, :, :1], back[:, :, :-1]], axis=2)
maps = (maps + back + cells["flip_shift"] * (moved - back)) / 2

# Heatmaps to cells: the centre of mass of a softmax, or the highest cell and a quarter to the higher side.
count, rows, columns = maps.shape
flat, scores = maps.reshape(count, -1), maps.max(axis=(1, 2))
if card["decoder"] == "soft_argmax":
    mass = np.exp(card["alpha"] * (flat - scores[:, None]).astype(float))
    mass = (mass / mass.sum(axis=1, keepdims=True)).reshape(maps.shape)
    points = np.stack([mass.sum(axis=1) @ np.arange(columns), mass.sum(axis=2) @ np.arange(rows)], axis=1)
else:
    cell = flat.argmax(axis=1) * (scores > 0)
    points = np.stack([cell % columns, cell // columns], axis=1).astype(float)
    for keypoint, (i, j) in enumerate(points.astype(int)):
        if 1 < i < columns - 1 and 1 < j < rows - 1:
            around = maps[keypoint, j - 1 : j + 2, i - 1 : i + 2]
            points[keypoint] += 0.25 * np.sign([around[1, 2] - around[1, 0], around[2, 1] - around[0, 1]])
points = (points * corner / (np.array([columns, rows]) - cells["size_minus_one"]) - shift) / zoom

for start, end in card["limbs"]:
    cv2.line(image, *np.rint(points[[start, end]]).astype(int).tolist(), (80, 200, 80), 2)
cv2.imwrite(drawn, image)
pose = np.column_stack([points, scores]).round(3).tolist()
print(json.dumps(dict(zip(card["keypoints"], pose, strict=True))))
