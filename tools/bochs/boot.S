// From the boot loader (Multiboot 0.6.96, 32 bits) to amx_main in 64-bit mode with AVX-512 and tiles
// enabled. Memory up to 4 GiB is mapped to itself; any exception halts.
.section .multiboot, "ax"
.code32
header:
  .long 0x1badb002                      // magic
  .long 0x00010000                      // the addresses below are valid
  .long -(0x1badb002 + 0x00010000)
  .long header, header, load_end, bss_end, start

start:
  cli
  mov $stack_top, %esp
  // Page tables: 4 × 512 pages of 2 MiB.
  movl $pdpt + 3, pml4
  mov $pdpt, %edi
  mov $pd + 3, %eax
  mov $4, %ecx
1:
  mov %eax, (%edi)
  add $8, %edi
  add $4096, %eax
  loop 1b
  mov $pd, %edi
  mov $0x83, %eax
  mov $2048, %ecx
2:
  mov %eax, (%edi)
  add $8, %edi
  add $0x200000, %eax
  loop 2b
  mov %cr4, %eax
  or $0x40620, %eax                     // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
  mov %eax, %cr4
  mov $pml4, %eax
  mov %eax, %cr3
  mov $0xc0000080, %ecx                 // EFER.LME
  rdmsr
  or $0x100, %eax
  wrmsr
  mov %cr0, %eax
  and $~4, %eax                         // no EM
  or $0x80000002, %eax                  // PG, MP
  mov %eax, %cr0
  lgdt gdt_pointer
  ljmp $8, $start64

.code64
start64:
  mov $16, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %ss
  xor %ecx, %ecx
  mov $0x600e7, %eax                    // x87, SSE, AVX, AVX-512, TILECFG, TILEDATA
  xor %edx, %edx
  xsetbv
  mov $stack_top, %rsp
  call amx_main
3:
  hlt
  jmp 3b

.align 8
gdt:
  .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
  .word 23
  .long gdt, 0

.section .bss
.align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 16384
stack: .skip 1 << 20
stack_top:

.section .note.GNU-stack, "", @progbits
