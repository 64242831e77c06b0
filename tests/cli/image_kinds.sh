# Images are known by their content: in records and in captioned folders, whatever their names say.
. "$(dirname "$0")/cli.inc"
odd=tests/golden/odd
mkdir -p "$TEST_TMP/folder" "$TEST_TMP/images"

for f in lossy.webp animated.gif gif_named.jpg webp_named.jpg png_named.jpg before_eoi_11.jpg no_iend.png \
    text_behind_crc.png; do
    cp "$odd/$f" "$TEST_TMP/images/"
    cp "$odd/$f" "$TEST_TMP/folder/${f%.*}_it.${f##*.}"
    echo "Waves on the shore." >"$TEST_TMP/folder/${f%.*}_it.txt"
done

# record FILE: a data set of one record with that image.
record() {
    rm -rf "$TEST_TMP/run" "$TEST_TMP/cache"
    printf '[{"id":"%s","image":"%s","conversations":[{"from":"human","value":"<image>\\nWhat?"},{"from":"gpt","value":"Waves."}]}]' \
        "$1" "$1" >"$TEST_TMP/data.json"
}
one=("data:data_path=$TEST_TMP/data.json" "data:image_folder=$TEST_TMP/images" "data:data_cache_path=$TEST_TMP/cache"
    optimizer:lr_warmup_iters=0 training:train_iters=1 training:global_batch_size=1 training:micro_batch_size=1)

for f in "$TEST_TMP"/images/*; do
    f=$(basename "$f")
    record "$f"
    train 1 "${one[@]}"
    expect 0 '' "$f is trained on" "${command[@]}"
done

job=$TEST_TMP/folder.ini
sed "s#= *tiny/#= $PWD/input/tiny/#; /^image_folder/d; /^data_format/d" "$tiny" >"$job"
rm -rf "$TEST_TMP/run" "$TEST_TMP/cache"
train 1 "data:data_path=$TEST_TMP/folder" data:data_format=captioned_folder data:conversation_template=plain \
    optimizer:lr_warmup_iters=0 training:train_iters=1 training:global_batch_size=8 training:micro_batch_size=1
expect 0 'data: 8 samples \(0 without image' "a captioned folder of all of them" "${command[@]}"
job=

# refused FILE REGEX: made already in images/
refused() {
    record "$1"
    train 1 "${one[@]}"
    expect 65 "$2" "$1: refused, $2" "${command[@]}"
}
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n' 7 >"$TEST_TMP/images/pointer.png"
refused pointer.png 'image pointer.png is a Git LFS pointer.*git lfs pull'
printf '<!DOCTYPE html><html><body>404</body></html>' >"$TEST_TMP/images/page.jpg"
refused page.jpg 'image page.jpg holds an HTML page.*fetch it again'
printf 'BM6\0\0\0\0\0\0\0' >"$TEST_TMP/images/bitmap.jpg"
refused bitmap.jpg 'image bitmap.jpg holds BMP.*PNG, JPEG, WebP and GIF'
head -c 900 "$odd/progressive_cmyk.jpg" >"$TEST_TMP/images/cut.jpg"
refused cut.jpg 'image cut.jpg is a truncated JPEG'
python3 - "$TEST_TMP/images/wide.png" <<'EOF'
import struct, sys, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
with open(sys.argv[1], "wb") as f:
    f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 2, 8, 0, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(bytes(2 * 40001))) + chunk(b"IEND", b""))
EOF
refused wide.png 'image wide.png is 40000 x 2 pixels, allowed are 32768 a side'
exit $status
