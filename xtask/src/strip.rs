//! An eBPF object as the linker wrote it -> code, BTF and maps.
//!
//! DWARF is four fifths of the file and no loader reads it; BTF carries the types and source lines that the verifier
//! prints. Relocations of BTF are dropped as well: their values are in place, and loaders skip them.

use anyhow::Context as _;
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Removes what no loader reads.
///
/// `object`: a 64-bit ELF relocatable. Sections, symbols and relocations of code and data stay as they are, in order.
/// Errors: it is no ELF file that can be read and written.
pub(crate) fn strip(object: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output is no ELF file")?;
    let debug = |name: &[u8]| name.starts_with(b".debug_");
    let described = |name: &[u8]| debug(name) || name.starts_with(b".BTF");
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let relocates = matches!(section.data, SectionData::Relocation(_));
        let of = name.strip_prefix(b".rela").or_else(|| name.strip_prefix(b".rel"));
        section.delete = debug(name) || relocates && of.is_some_and(described);
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one section, the builder wants two.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    builder.set_section_sizes();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use object::build::elf::Relocation;
    use object::{Endianness, elf};

    use super::*;

    /// An object as LLVM writes it: code that refers to a map, debug sections with relocations, BTF.
    fn linked() -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        let mut section = |name: &'static str, sh_type, data| {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = sh_type;
            section.sh_addralign = 8;
            section.data = data;
            section.id()
        };
        section(".shstrtab", SHT_STRTAB, SectionData::SectionString);
        section(".strtab", SHT_STRTAB, SectionData::String);
        let symbols = section(".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
        let mut data = |name| section(name, elf::SHT_PROGBITS, SectionData::Data(b"12345678".as_slice().into()));
        let [code, maps, info, btf] = ["perf_event", "maps", ".debug_info", ".BTF"].map(&mut data);
        let symbol = builder.symbols.add();
        symbol.name = b"COUNTS".as_slice().into();
        symbol.section = Some(maps);
        let symbol = Some(symbol.id());
        for (name, of) in [(".relperf_event", code), (".rel.debug_info", info), (".rel.BTF", btf)] {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = elf::SHT_REL;
            section.sh_addralign = 8;
            section.sh_link_section = Some(symbols);
            section.sh_info_section = Some(of);
            let r_type = elf::R_BPF_64_64;
            section.data = SectionData::Relocation(vec![Relocation { r_offset: 0, symbol, r_type, r_addend: 0 }]);
        }
        builder.set_section_sizes();
        let mut bytes = Vec::new();
        builder.write(&mut bytes).expect("the builder writes what it was given");
        bytes
    }

    #[test]
    fn strip_drops_debug_sections_and_keeps_code_maps_and_btf() {
        let stripped = strip(&linked()).expect("a valid object");
        let builder = Builder::read(&*stripped).expect("a valid object");
        let names: Vec<_> = builder.sections.iter().map(|section| section.name.to_string()).collect();
        assert_eq!(names, [".shstrtab", ".strtab", ".symtab", "perf_event", "maps", ".BTF", ".relperf_event"]);
        assert_eq!(builder.symbols.count(), 1);
    }
}
