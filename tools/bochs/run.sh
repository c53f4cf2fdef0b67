#!/bin/sh
# Boots the AMX kernels under Bochs and compares them with emulated tiles: see README.md.
# Other places than Debian's: BOCHS, BOCHS_SHARE, BOCHS_VGA (its BIOS images), ISOLINUX, SYSLINUX, XORRISO.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
share=${BOCHS_SHARE:-/usr/share/bochs}
modules=${SYSLINUX:-/usr/lib/syslinux/modules/bios}

# No thread-local storage without a C library, and one thread only.
flags="-std=c++20 -O3 -I$root -ffreestanding -fno-pic -fno-exceptions -fno-rtti -fno-stack-protector
  -fno-threadsafe-statics -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns
  -Dthread_local="
amx="-mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16
  -mprefer-vector-width=512"
for name in amx amx_emulated; do
  g++ $flags $amx -c "$root/core/cpu/kernels/$name.cpp" -o "$build/kernels_$name.o"
done
g++ $flags -c "$here/amx.cpp" -o "$build/amx.o"
gcc -c "$here/boot.S" -o "$build/boot.o"
ld --no-warn-rwx-segments -T "$here/link.ld" -o "$build/amx.elf" "$build"/*.o
mkdir -p "$build/cd/isolinux"
objcopy -O binary "$build/amx.elf" "$build/cd/isolinux/amx.bin"
cp "${ISOLINUX:-/usr/lib/ISOLINUX/isolinux.bin}" "$modules/ldlinux.c32" "$modules/libcom32.c32" \
  "$modules/mboot.c32" "$build/cd/isolinux"
printf 'default amx\nprompt 0\nlabel amx\n  kernel mboot.c32\n  append amx.bin\n' \
  >"$build/cd/isolinux/isolinux.cfg"
${XORRISO:-xorriso} -as mkisofs -quiet -o "$build/cd.iso" -b isolinux/isolinux.bin \
  -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$build/cd" 2>/dev/null

cat >"$build/bochsrc" <<RC
cpu: model=sapphire_rapids, count=1, ips=50000000
megs: 512
romimage: file=$share/BIOS-bochs-latest
vgaromimage: file=${BOCHS_VGA:-$share/VGABIOS-lgpl-latest}
display_library: rfb, options="timeout=0"
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$build/cd.iso, status=inserted
boot: cdrom
log: $build/bochs.log
port_e9_hack: enabled=1
clock: sync=none
RC
echo c >"$build/continue"
${BOCHS:-bochs} -q -f "$build/bochsrc" -rc "$build/continue" >"$build/out" 2>&1 </dev/null &
bochs=$!
until grep -qE '^(ALL PASS|FAILED)' "$build/out" || ! kill -0 $bochs 2>/dev/null; do
  sleep 2
done
kill $bochs 2>/dev/null || true
grep -E '^(bf16|mxfp4|q8) |^ALL PASS|^FAILED' "$build/out" || tail -n 20 "$build/out" "$build/bochs.log"
grep -q '^ALL PASS' "$build/out"
