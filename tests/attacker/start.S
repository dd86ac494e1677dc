/* Entry, and how a second processor comes from real mode into the same address space. */

#define STACK 0x3f0000
#define SECOND_STACK 0x3e0000
/* A free page below 1 MiB, between the zero page and the page tables. */
#define TRAMPOLINE 0x8000
#define PAGE_TABLES 0x9000
#define AT(label) (TRAMPOLINE + label - second_start)

    .text
    .globl entry
entry:
    mov $STACK, %esp
    mov %rsi, %rdi
    call attack
1:  cli
    hlt
    jmp 1b

    .globl second_start, second_end
second_start:
    .code16
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl AT(table)
    movl $0x20, %eax /* CR4.PAE */
    movl %eax, %cr4
    movl $PAGE_TABLES, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx /* EFER.LME */
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000011, %eax /* CR0.PG, ET and PE */
    movl %eax, %cr0
    ljmpl $8, $AT(in_long_mode)
    .code64
in_long_mode:
    mov $SECOND_STACK, %esp
    mov $second_processor, %eax
    call *%rax
1:  cli
    hlt
    jmp 1b
    .balign 8
descriptors:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
table:
    .word table - descriptors - 1
    .long AT(descriptors)
second_end:

    .section .note.GNU-stack, "", @progbits
