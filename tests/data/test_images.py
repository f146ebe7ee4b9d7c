"""read_image: channel and depth rules, and every way a picture file can be bad."""

import io
import os
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from hrnetpp_lib.data import images
from hrnetpp_lib.data.images import decode_image, read_image
from hrnetpp_lib.errors import HrnetppError

HEIGHT, WIDTH = 13, 22


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encode(image, extension=".png", *options):
    return cv2.imencode(extension, image, options)[1].tobytes()


def with_exif(jpeg, payload):
    """The JPEG with an APP1 segment after its start marker."""
    payload = b"Exif\0\0" + payload
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def test_channels_come_as_red_green_blue(tmp_path, rgb):
    (tmp_path / "a.png").write_bytes(encode(rgb[..., ::-1]))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert read_image(path).dtype == np.uint8
        np.testing.assert_array_equal(read_image(path), rgb)


def test_grey_is_repeated_and_alpha_dropped_without_blending(rgb):
    grey = rgb[..., 0]
    np.testing.assert_array_equal(decode_image(encode(grey), "a"), np.repeat(grey[..., None], 3, axis=2))
    rgba = np.dstack([rgb[..., ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)])
    np.testing.assert_array_equal(decode_image(encode(rgba), "a"), rgb)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bit_is_scaled_down(extension, rgb):
    deep = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3), np.uint16)
    image = decode_image(encode(deep[..., ::-1], extension), "a")
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, deep / 257, atol=1)
    grey = rgb[..., 1].astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(decode_image(encode(grey), "a")[..., 2], rgb[..., 1])


@pytest.mark.parametrize("order, tiff", [("<", b"II*\0"), (">", b"MM\0*")])
def test_photographs_stand_upright_on_request_alone(tmp_path, order, tiff):
    """EXIF orientation 6: the camera was held on its side, and the picture is to be turned clockwise."""
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :10] = 255  # bright at the left of what is stored
    entry = struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    (tmp_path / "phone.jpg").write_bytes(with_exif(encode(image, ".jpg"), tiff + entry))
    stored, turned = (read_image(tmp_path / "phone.jpg", upright=u) for u in (False, True))
    assert stored.shape == (20, 30, 3) and stored[:, :8].min() > 200
    assert turned.shape == (30, 20, 3) and turned[:8].min() > 200 and turned[20:].max() < 60


def test_missing_files_folders_pipes_and_endless_files(tmp_path):
    with pytest.raises(HrnetppError, match=r"nothing\.jpg: there is no such file; check the image folder"):
        read_image(tmp_path / "nothing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(HrnetppError, match="is no regular file"):
            read_image(path)


def test_absurd_sizes_are_refused_before_memory_is_asked_for(rgb, monkeypatch):
    """Small files that say they have 60000 x 50000 pixels."""
    jpeg, png = encode(rgb, ".jpg"), encode(rgb)
    jpeg = jpeg.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 50000, 60000))
    header = b"IHDR" + struct.pack(">II", 60000, 50000) + png[24:29]
    png = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    strange = jpeg[:2] + b"\0\0garbage" + jpeg[2:]  # decoders skip what is between the segments
    monkeypatch.setattr(cv2, "imdecode", None)  # not even called
    for data in (jpeg, png, strange):
        with pytest.raises(HrnetppError, match="big: the image says that it has 60000 x 50000 pixels"):
            decode_image(data, "big")


@pytest.mark.parametrize("extension", [".bmp", ".webp", ".tiff", ".ppm"])
def test_sizes_of_other_formats_are_known_too(extension, rgb, monkeypatch):
    data = encode(rgb, extension)
    assert decode_image(data, "a").shape == rgb.shape
    monkeypatch.setattr(images, "_MOST_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(HrnetppError, match=f"{WIDTH} x {HEIGHT} pixels"):
        decode_image(data, "a")


HOLLOW_JPEG = b"\xff\xd8\xff\xda\x00\x00\xff\xd9"


@pytest.mark.parametrize(
    "data", [b"", b"this is text, not pixels", b"BM" + bytes(60), b"\x89PNG\r\n\x1a\nIEND", HOLLOW_JPEG]
)
def test_what_is_no_image(tmp_path, data):
    (tmp_path / "bad.jpg").write_bytes(data)
    with pytest.raises(HrnetppError, match=r"bad\.jpg.*(no image that OpenCV can decode|is empty)"):
        read_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_truncated_file_is_refused(extension, share):
    smooth = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (90, 70, 3), np.uint8), (0, 0), 2)
    data = encode(smooth, extension)
    assert decode_image(data, "whole").shape == (90, 70, 3)
    with pytest.raises(HrnetppError, match=r"cut\.jpg.*truncated"):
        decode_image(data[: max(10, int(share * len(data)))], "cut.jpg")


def test_only_the_end_of_the_photograph_itself_is_asked_for(rgb):
    jpeg = encode(rgb, ".jpg")
    progressive = encode(rgb, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for photograph, missing in ((with_exif(jpeg, jpeg), 2), (progressive, 40)):
        assert decode_image(photograph, "a").shape == rgb.shape
        with pytest.raises(HrnetppError, match="truncated"):
            decode_image(photograph[:-missing], "a")
    np.testing.assert_array_equal(decode_image(jpeg + bytes(500), "a"), decode_image(jpeg, "a"))


def test_real_photographs_pass_and_their_halves_do_not(real_data):
    paths = sorted((real_data / "coco_mini" / "train2017").glob("*.jpg"))[:12]
    paths += sorted((real_data / "aic_sample" / "images").glob("*.jpg"))
    assert len(paths) == 15
    for path in paths:
        assert read_image(path).ndim == 3
        data = path.read_bytes()
        with pytest.raises(HrnetppError, match="truncated"):
            decode_image(data[: len(data) // 2], path)


def smooth(height, width, seed=3):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def by_pillow(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def every_kind_of_jpeg(height=101, width=77):
    """JPEGs of all that OpenCV and Pillow can write."""
    image, quality = smooth(height, width), cv2.IMWRITE_JPEG_QUALITY
    samplings = [getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in (411, 420, 422, 440, 444)]
    for sampling in samplings:
        for progressive, restart in ((0, 0), (1, 0), (0, 3)):
            options = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, quality, 60 + 20 * progressive)
            options += (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart)
            yield encode(image, ".jpg", *options)
    yield encode(image[..., 0], ".jpg")
    picture = Image.fromarray(image)
    yield by_pillow(picture.convert("CMYK"))
    yield by_pillow(picture.convert("L"), progressive=True)
    yield by_pillow(picture, keep_rgb=True)
    yield by_pillow(picture, optimize=True, comment=b"\xff\xd9 no end")
    yield with_exif(encode(image, ".jpg"), b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0))


def outcome(data, **options):
    """The pixels, or what is complained about."""
    try:
        return decode_image(data, "a.jpg", **options)
    except HrnetppError as error:
        return np.array(str(error))


@pytest.fixture
def by_opencv(monkeypatch):
    """`outcome`, but without simplejpeg."""

    def decode(data, **options):
        with monkeypatch.context() as absent:
            absent.setattr(images, "simplejpeg", None)
            return outcome(data, **options)

    return decode


def assert_the_same(data, by_opencv, rows):
    """The same pixels or complaint with either decoder, in both layouts, and in the upper rows."""
    expected = by_opencv(data)
    np.testing.assert_array_equal(outcome(data), expected)
    for decode in (outcome, by_opencv):
        padded, upper = decode(data, channels=4), decode(data, channels=4, rows=rows)
        if not expected.ndim:  # a complaint
            assert padded == upper == expected
            continue
        assert padded.shape == (*expected.shape[:2], 4) and len(upper) >= min(rows, len(expected))
        np.testing.assert_array_equal(padded[..., :3], expected)
        np.testing.assert_array_equal(upper[..., :3], expected[: len(upper)])


@pytest.mark.parametrize("size", [(101, 77), (1, 1), (3, 200), (64, 48), (200, 3)])
def test_both_decoders_give_the_same_pixels(size, by_opencv):
    pytest.importorskip("simplejpeg")
    for number, data in enumerate(every_kind_of_jpeg(*size)):
        assert_the_same(data, by_opencv, rows=1 + 7 * number % size[0])


def test_simplejpeg_is_used_for_what_it_can_and_told_where_to_stop(monkeypatch, by_opencv):
    simplejpeg = pytest.importorskip("simplejpeg")
    taken = []

    class Watched:
        @staticmethod
        def decode_jpeg(data, *arguments, **options):
            image = simplejpeg.decode_jpeg(data, *arguments, **options)
            taken.append(image.shape)
            return image

    monkeypatch.setattr(images, "simplejpeg", Watched)
    baseline = encode(smooth(200, 30), ".jpg")
    assert decode_image(baseline, "a", rows=50).shape == (50, 30, 3) and taken == [(82, 30, 3)]
    for rows in (168, 200, 999, 2**31):  # too few are left to stop before
        assert decode_image(baseline, "a", rows=rows).shape == (min(rows, 200), 30, 3) and taken[-1][0] == 200
    progressive = encode(smooth(200, 30), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    decode_image(progressive, "a", rows=50)  # has all rows in each of its scans
    assert taken[-1][0] == 200 and len(taken) == 6
    decode_image(baseline, "a", upright=True)
    decode_image(encode(smooth(20, 30)), "a")
    assert len(taken) == 6


def test_a_file_whose_colours_come_one_after_the_other_is_not_cut(monkeypatch):
    """Each colour's scan has all of the rows."""
    given = []

    class Listens:
        @staticmethod
        def decode_jpeg(data, *_, **__):
            given.append(data)
            return np.zeros((200, 30, 3), np.uint8)

    monkeypatch.setattr(images, "simplejpeg", Listens)
    together = encode(smooth(200, 30), ".jpg")
    colours = together.index(b"\xff\xda") + 4
    assert together[colours] == 3
    for data, cut in ((together, True), (together[:colours] + b"\1" + together[colours + 1 :], False)):
        decode_image(data, "a", rows=50)
        assert (given.pop() != data) is cut


def test_what_simplejpeg_refuses_is_left_to_opencv(monkeypatch):
    class Refuses:
        @staticmethod
        def decode_jpeg(*_, **__):
            raise ValueError("not mine")

    data = encode(smooth(101, 77), ".jpg")
    expected = decode_image(data, "a")
    monkeypatch.setattr(images, "simplejpeg", Refuses)
    for rows in (None, 20):
        np.testing.assert_array_equal(decode_image(data, "a", rows=rows), expected[: rows and 101])


def test_damaged_files_give_the_same_pixels_or_complaint(by_opencv):
    pytest.importorskip("simplejpeg")
    random, seen = np.random.default_rng(4), []
    for data in every_kind_of_jpeg():
        for _ in range(8):
            bad = bytearray(data)
            match random.integers(4):
                case 0:
                    bad[random.integers(2, len(bad))] = random.integers(256)
                case 1:
                    del bad[(at := random.integers(2, len(bad))) : at + random.integers(1, 300)]
                case 2:
                    at = random.integers(len(bad) // 2, len(bad))
                    bad[at:at] = bytes([0xFF, random.integers(0xC0, 0xFF)]) + random.bytes(random.integers(9))
                case 3:
                    bad = bad[: random.integers(2, len(bad))] + b"\xff\xd9"
            assert_the_same(bytes(bad), by_opencv, int(random.integers(1, 70)))
            seen.append(outcome(bytes(bad)).ndim)
    assert seen.count(3) > 60 and seen.count(0) > 3


def test_real_photographs_are_the_same_with_either_decoder(real_data, by_opencv):
    pytest.importorskip("simplejpeg")
    photographs = [path.read_bytes() for path in sorted(real_data.rglob("*.jpg"))]
    with zipfile.ZipFile(sorted((real_data / "lspet").glob("*.zip"))[0]) as archive:
        photographs += [archive.read(name) for name in archive.namelist()[::200]]
    assert len(photographs) > 90
    for data in photographs:
        assert_the_same(data, by_opencv, rows=150)
